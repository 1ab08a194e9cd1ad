"""The command line as a whole: what is imported when, and how it fails."""

import subprocess
import sys

import pytest

from embedmux.client.blocking import Client
from embedmux.server.cli import COMMANDS, missing_package


def imported_by(words: list[str], module: str) -> bool:
    code = (
        "import sys; from embedmux.server.cli import main\n"
        f"main({words!r})\n"
        f"sys.stderr.write('yes' if {module!r} in sys.modules else 'no')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.endswith("yes")


@pytest.mark.parametrize("words", [["--help"], ["embed", "--help"], ["tasks", "--server", "127.0.0.1:1"]], ids=" ".join)
def test_commands_that_need_no_torch_do_not_load_it(words: list[str]) -> None:
    assert not imported_by(words, "torch")


def test_help_lists_every_command_without_importing_one() -> None:
    assert not imported_by(["--help"], "grpc")


def test_every_command_has_its_summary_in_the_list(run) -> None:
    listed = run("--help").out
    for name in COMMANDS:
        assert f"│ {name} " in listed


@pytest.mark.parametrize("name", ["demo", "embed", "rerank", "tasks", "doctor"])
def test_a_command_explains_itself(run, name: str) -> None:
    explained = run(name, "--help")
    assert explained.code == 0
    assert f"Usage: embedmux {name}" in explained.out
    assert len(explained.out.splitlines()) > 8


def test_an_unknown_command_is_answered_with_the_nearest_and_imports_nothing(run) -> None:
    wrong = run("embd")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "error: no command 'embd'; did you mean 'embed'; see `embedmux --help`\n"
    assert "there are check, list, load, unload" in run("adapters", "zzz").err


def test_a_wrong_option_is_one_line_and_exit_code_2(run) -> None:
    wrong = run("embed", "text", "--encoding", "float64")
    assert wrong.code == 2
    assert "--encoding" in wrong.err and "see `embedmux embed --help`" in wrong.err
    assert "Traceback" not in wrong.err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(run) -> None:
    failed = run("tasks", "--server", "127.0.0.1:1")
    assert failed.code == 1
    assert failed.err.startswith("error: no server answers at 127.0.0.1:1 (") and failed.err.count("\n") == 1


def test_a_missing_extra_names_what_to_install() -> None:
    wrapped = ImportError("cannot import module 'embedmux.training.command'")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'peft'", name="peft")
    assert missing_package(wrapped) == "this needs the package 'peft', which is not installed: " + (
        "pip install 'embedmux[train]'"
    )
    assert "pip install rich" in missing_package(ModuleNotFoundError("no", name="rich.table"))


def test_a_module_of_embedmux_that_is_missing_is_a_bug_and_raised() -> None:
    with pytest.raises(ModuleNotFoundError):
        missing_package(ModuleNotFoundError("no", name="embedmux.server.gone"))


def test_version_is_printed(run) -> None:
    assert run("--version").code == 0


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "embedmux.server.cli", "nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no command 'nonsense'" in done.stderr


def test_the_chosen_command_speaks_for_itself_and_the_others_in_a_line(run) -> None:
    assert "Inputs are texts, or files ending in .jsonl" in run("embed", "--help").out
    assert "Inputs are texts" not in run("--help").out


def test_an_interrupt_is_one_line_and_exit_code_130(run, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "info", interrupted)
    done = run("tasks")
    assert (done.code, done.err) == (130, "error: interrupted\n")
