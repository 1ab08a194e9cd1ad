"""``embedmux adapters check``: an adapter folder read exactly as the server reads it."""

from pathlib import Path

from rich.filesize import decimal

from embedmux.server.adapters.directory import read_adapter
from embedmux.server.backbones.targets import model_targets
from embedmux.server.cli import console
from embedmux.server.errors import AdapterRejected, InvalidRequest
from embedmux.server.models import find_model

BARE_MODEL = "base"
CONFIG = "adapter_config.json"


def check(folder: Path, *, model: str = "minilm") -> int:
    """Check adapter folders as the server would, without a server.

    Each adapter is reported as ok or with the precise reason it would be refused; the exit code is 1 if any is.

    Examples:

        embedmux adapters check adapters/legal

        embedmux adapters check adapters --model BAAI/bge-small-en-v1.5

    Parameters
    ----------
    folder
        One adapter, or a folder of them.
    model
        The model the adapters are for: a packaged model, a local directory or a hub id.
    """
    targets = model_targets(find_model(model))
    screen = console.output()
    num_refused = 0
    for path in adapter_folders(folder):
        try:
            adapter = read_adapter(path, targets, root=folder)
        except AdapterRejected as error:
            num_refused += 1
            screen.print("refused", style="bold red", end=" ")
            screen.print(str(error), soft_wrap=True)
            continue
        facts = f"task {adapter.task or 'none'}, rank {adapter.max_rank}, {len(adapter.targets)} linears"
        screen.print("ok     ", style="bold green", end=" ")
        screen.print(f"{adapter.id}: {facts}, {decimal(adapter.num_bytes)}", soft_wrap=True)
    return 1 if num_refused else 0


def adapter_folders(folder: Path) -> list[Path]:
    """``folder`` itself if it is an adapter, else every folder directly below it."""
    if not folder.is_dir():
        raise InvalidRequest(f"{str(folder)!r} is no folder")
    if (folder / CONFIG).exists():
        return [folder]
    # The bare model's own folder holds a calibration and no adapter; any other folder without one is a mistake.
    below = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != BARE_MODEL)
    if not below:
        raise InvalidRequest(f"{str(folder)!r} holds neither {CONFIG} nor adapter folders")
    return below
