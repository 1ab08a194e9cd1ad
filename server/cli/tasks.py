"""``embedmux tasks``: what a server can be asked for."""

from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.client.records import ModelInfo
from embedmux.server.cli import console
from embedmux.server.errors import Unavailable


def tasks(*, server: str = "localhost:50051") -> None:
    """List the tasks of a server: adapters, prompts, spaces.

    Vectors may be compared only within one space; `embedmux embed --task NAME` embeds for a task.

    Examples:

        embedmux tasks

        embedmux tasks --server embeddings.example:50051

    Parameters
    ----------
    server
        host:port or unix:PATH of the server.
    """
    with Client(server) as client:
        info = client.info()
    if not info.models:
        raise Unavailable(f"{server} serves no model yet, it is {info.state}; try again when it is serving")
    for model in info.models:
        show_model(model)


def show_model(model: ModelInfo) -> None:
    """One model: a line of facts, then its tasks."""
    screen = console.output()
    facts = [
        model.architecture,
        f"{model.dimensions} dimensions",
        f"{model.max_tokens} tokens",
        f"{model.pooling} pooling",
        f"{model.dtype} on {model.device}",
    ]
    if model.calibrated_dimensions:
        facts.append(f"int8 at {', '.join(map(str, model.calibrated_dimensions))}")
    screen.print(model.name, style="bold", end="  ")
    screen.print(" · ".join(facts))
    table = Table("task", "also called", "adapter", "query prompt", "document prompt", "space", header_style="bold")
    for task in model.tasks:
        table.add_row(
            task.name,
            ", ".join(task.aliases),
            task.adapter or "none",
            shown_prompt(task.query_prompt),
            shown_prompt(task.document_prompt),
            console.short_space(task.space),
        )
    screen.print(table)


def shown_prompt(prompt: str) -> str:
    """A prompt with its spaces and line ends visible."""
    return repr(prompt) if prompt else "none"
