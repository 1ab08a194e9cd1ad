"""The command line: ``embedmux COMMAND``. Commands are imported when they run, so ``embedmux embed`` never loads torch.

Exit codes: 0 done; 1 failed, with one line on stderr that says why; 2 the command line itself is wrong; 3 some texts
of ``embedmux embed`` or documents of ``embedmux rerank`` failed; 130 interrupted.
"""

import difflib
import importlib.metadata
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownCommandError

from embedmux.server.cli.console import WrongUsage, fail
from embedmux.server.errors import EmbedmuxError

# Name -> where it is, and the line `embedmux --help` shows.
COMMANDS = {
    "demo": ("embedmux.server.cli.demo:demo", "See it work: start a server, embed four tasks in one request, stop."),
    "serve": ("embedmux.server.cli.serve:serve", "Serve a model and its task adapters over gRPC."),
    "embed": ("embedmux.server.cli.embed:embed", "Embed texts or JSONL files with a running server."),
    "rerank": ("embedmux.server.cli.rerank:rerank", "Order documents by how well they answer a query."),
    "bench": ("embedmux.server.cli.bench:bench", "Put load on a running server and measure what it answers."),
    "top": ("embedmux.server.cli.top:top", "Watch a running server: rates, latencies, queue, refusals, tenants."),
    "tasks": ("embedmux.server.cli.tasks:tasks", "List a server's models and tasks: adapters, prompts, spaces."),
    "adapters": ("embedmux.server.cli.adapters:app", "Check adapter folders; list, load and unload adapters."),
    "models": ("embedmux.server.cli.models:models", "List the known families, or what a model would be served as."),
    "convert": ("embedmux.server.cli.convert:convert", "Convert a model's pickled weights to safetensors, offline."),
    "train": ("embedmux.training.command:train_command", "Train a task adapter."),
    "calibrate": ("embedmux.training.command:calibrate_command", "Measure int8 and uint8 ranges of a bare model."),
    "kernels": ("embedmux.server.cli.kernels:app", "List the kernels; compile those for a GPU ahead of time."),
    "doctor": ("embedmux.server.cli.doctor:doctor", "Look at this installation, or at a model, and suggest fixes."),
}
# Which optional extra brings a package that only some commands need.
EXTRAS = {
    "train": ("accelerate", "datasets", "peft", "pytrec_eval", "sentence_transformers", "sklearn", "transformers"),
    "cuda": ("triton",),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "traces": ("opentelemetry",),
    "hub": ("huggingface_hub",),
}
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code. ``arguments`` None are the process's own."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = build_app(tokens)(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, WrongUsage) as error:
        fail(f"{usage_message(error)}; see `{' '.join(['embedmux', *command_words(tokens)])} --help`")
        return WRONG_USAGE
    except (EmbedmuxError, OSError, ImportError) as error:
        fail(reason(error))
        return FAILED
    except KeyboardInterrupt:
        fail("interrupted")
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def build_app(tokens: Sequence[str]) -> App:
    """The application. A command that runs is described by its own docstring, the others by a line and not imported."""
    is_command = tokens[:1] != [] and tokens[0] in COMMANDS
    app = App(
        name="embedmux",
        help="Instruction-tuned text embeddings over gRPC: many tasks, one backbone, one batch.",
        help_epilogue=None if is_command else "Start with `embedmux demo`; `embedmux embed --help` explains a command.",
        version=version,
        suppress_keyboard_interrupt=False,
    )
    for place, (name, (path, summary)) in enumerate(COMMANDS.items()):
        app.command(path, name=name, help=None if name in tokens[:1] else summary, sort_key=place)
    return app


def version() -> str:
    """The installed version; a source tree that is not installed says so."""
    try:
        return importlib.metadata.version("embedmux")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (source tree)"


def usage_message(error: CycloptsError | WrongUsage) -> str:
    """What is wrong with the command line. An unknown command is told here: cyclopts would import every command."""
    if not isinstance(error, UnknownCommandError):
        return str(error).strip().rstrip(".")
    word = (error.unused_tokens or [""])[0]
    known = [name for name in error.app or COMMANDS if not name.startswith("-")]
    close = difflib.get_close_matches(word, known, n=1)
    return f"no command {word!r}; " + (f"did you mean {close[0]!r}" if close else f"there are {', '.join(known)}")


def command_words(tokens: Sequence[str]) -> list[str]:
    """The command whose help explains ``tokens``."""
    return [token for token in tokens[:1] if token in COMMANDS]


def reason(error: EmbedmuxError | OSError | ImportError) -> str:
    """Why a command failed, in one line."""
    if isinstance(error, ImportError):
        return missing_package(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def missing_package(error: ImportError) -> str:
    """A package that is not installed, and the extra that brings it. Anything else is a bug and raised again."""
    # cyclopts wraps the error of a lazily imported command.
    cause = error if error.name else error.__cause__
    package = (getattr(cause, "name", None) or "embedmux").split(".")[0]
    if package == "embedmux":
        raise error
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    install = f"pip install 'embedmux[{extra}]'" if extra else f"pip install {package}"
    return f"this needs the package {package!r}, which is not installed: {install}"
