"""``embedmux tasks``: what a server can be asked for, model by model."""

from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.client.records import ModelInfo
from embedmux.server.cli import console
from embedmux.server.errors import Unavailable


def tasks(*, server: str = "localhost:50051") -> None:
    """List a server's models and tasks: adapters, prompts, spaces.

    Vectors may be compared only within one space; `embedmux embed --task NAME` embeds for a task. A request that names
    no model goes to the first embedder, or to the first reranker.

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
    for place, model in enumerate(info.models):
        if place:
            console.output().print()
        show_model(model)


def show_model(model: ModelInfo) -> None:
    """One model: its name, lines of facts, then an embedder's tasks."""
    screen = console.output()
    screen.print(model.name, style="bold", end="  ")
    screen.print(" · ".join(facts_of(model)))
    if model.template:
        screen.print(f"takes instructions: {model.template!r}", soft_wrap=True)
    if model.default_instruction:
        screen.print(f"default instruction: {model.default_instruction!r}", soft_wrap=True)
    for note in model.notes:
        screen.print(f"note: {note}", soft_wrap=True)
    if not model.tasks:
        return
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


def facts_of(model: ModelInfo) -> list[str]:
    """What a reader wants to know of a model before anything else, in a few words each."""
    facts = [f"{model.kind} of family {model.family}" if model.family else model.kind, model.architecture]
    if model.kind == "reranker":
        facts += [f"score = {model.activation}(logit)", f"{model.max_tokens} tokens"]
    else:
        facts += [shown_sizes(model), f"{model.max_tokens} tokens", f"{model.pooling} pooling"]
        if model.outputs != ("dense",):
            facts.append(" and ".join(model.outputs))
    facts.append(f"{model.dtype} on {model.device}")
    if model.calibrated_dimensions:
        facts.append(f"int8 at {', '.join(map(str, model.calibrated_dimensions))}")
    return [fact for fact in facts if fact]


def shown_sizes(model: ModelInfo) -> str:
    """The full size and what else the model declares."""
    smaller = [str(size) for size in model.sizes if size != model.dimensions]
    if model.any_size_from is not None:
        smaller = [size for size in smaller if int(size) < model.any_size_from]
        smaller.append(f"any from {model.any_size_from}")
    return f"{model.dimensions} dimensions" + (f" (or {', '.join(smaller)})" if smaller else "")


def shown_prompt(prompt: str) -> str:
    """A prompt with its spaces and line ends visible."""
    return repr(prompt) if prompt else "none"
