"""``embedmux adapters``: adapters of a running server. ``check`` needs torch and lives in adapters_check.py."""

from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.filesize import decimal
from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.server.cli import console

app = App(name="adapters", help="Check adapter folders; list, load and unload the adapters of a server.")
app.command(
    "embedmux.server.cli.adapters_check:check",
    name="check",
    help="Check adapter folders as the server would, without a server.",
)
Server = Annotated[str, Parameter(help="host:port or unix:PATH of the server.")]
Model = Annotated[str | None, Parameter(help="A model by name; default: the server's first embedder.")]


@app.command(name="list")
def list_adapters(*, model: str | None = None, server: Server = "localhost:50051") -> None:
    """List the adapters in service.

    Parameters
    ----------
    model
        A model by name; default: all models.
    """
    with Client(server) as client:
        adapters = client.adapters(model=model)
    table = Table(
        "adapter",
        "model",
        "task",
        "rank",
        "placement",
        "linears",
        "size",
        "int8 sizes",
        "prompts",
        "digest",
        header_style="bold",
    )
    for adapter in adapters:
        table.add_row(
            adapter.id,
            adapter.model,
            (adapter.task or "none") + (f", {adapter.role}" if adapter.role else ""),
            str(adapter.max_rank),
            adapter.placement,
            str(adapter.num_targets),
            decimal(adapter.num_bytes),
            ", ".join(map(str, adapter.calibrated_dimensions)) or "none",
            ", ".join(sorted(adapter.prompts)) or "none",
            adapter.digest[:12],
        )
    console.output().print(table if adapters else f"{server} has no adapters; `embedmux adapters load PATH` loads one")


@app.command
def load(
    path: str,
    *,
    id: str | None = None,
    model: Model = None,
    placement: Literal["low-rank", "merged"] | None = None,
    server: Server = "localhost:50051",
) -> None:
    """Load an adapter folder into a running server.

    Example: `embedmux adapters load legal/v2 --id legal`. The same folder again changes nothing.

    Parameters
    ----------
    path
        A folder below the model's adapter root (`embedmux serve --adapters ROOT`).
    id
        The name requests will use; default: the folder's name.
    placement
        low-rank keeps the factors beside the base weights: small and quick to load, some percent slower a text. merged
        adds them into a copy of the weights: as fast as the base model, at the memory of that copy. Default: the
        server's (`embedmux serve --placement`).
    """
    with Client(server) as client:
        adapter = client.load_adapter(path, id=id, model=model, placement=placement)
    text = f"loaded {adapter.id}: task {adapter.task or 'none'}, rank {adapter.max_rank}, {adapter.num_targets} linears"
    console.output().print(f"{text}, {decimal(adapter.num_bytes)}")


@app.command
def unload(id: str, *, model: Model = None, server: Server = "localhost:50051") -> None:
    """Take an adapter out of service; texts that already wait for it are still answered.

    Parameters
    ----------
    id
        The adapter's name, as `embedmux adapters list` shows it.
    """
    with Client(server) as client:
        client.unload_adapter(id, model=model)
    console.output().print(f"unloaded {id}")
