"""``embedmux models``: the families that are known, and what a directory would be served as."""

from collections.abc import Iterator

from rich.table import Table

from embedmux.server.checkpoint.families import FAMILIES
from embedmux.server.checkpoint.read import Reading, read
from embedmux.server.cli import console
from embedmux.server.contract import Contract, LateContract, ScoreContract
from embedmux.server.models import find_model


def models(model: str | None = None) -> None:
    """List the known families of models; with a model, what it would be served as.

    Nothing is loaded: a model's JSON and the headers of its weights say it all. `embedmux doctor MODEL` also compares
    the weights' shapes with the configuration.

    Examples:

        embedmux models

        embedmux models /models/bge-m3

    Parameters
    ----------
    model
        A local directory, a packaged model such as minilm, or a hub id.
    """
    if model is None:
        show_families()
    else:
        show_reading(model, read(find_model(model)))


def show_families() -> None:
    """The table of known families, in the order they are tried."""
    table = Table("family", "model_type", header_style="bold")
    table.add_column("models", overflow="fold")
    for family in FAMILIES:
        refusal = f"\nnot served: {family.refusal}" if family.refusal else ""
        style = "yellow" if family.refusal else None
        table.add_row(family.name, ", ".join(family.types), family.models + refusal, style=style)
    console.output().print(table)


def show_reading(model: str, reading: Reading) -> None:
    """One model: a line of facts, what is peculiar, its prompts, and what to know before serving it."""
    contract, screen = reading.contract, console.output()
    screen.print(model, style="bold", end="  ")
    screen.print(" · ".join(facts(contract)))
    table = Table.grid(padding=(0, 2))
    for name, value in peculiarities(reading):
        table.add_row(name, value)
    screen.print(table)
    for note in reading.notes:
        screen.print("note", style="yellow", end="  ")
        screen.print(note, soft_wrap=True)


def facts(contract: Contract) -> list[str]:
    """What it is, in a few words each."""
    found = [contract.family, f"backbone {contract.architecture}", f"{contract.max_tokens} tokens"]
    if contract.score is not None:
        return [*found, f"reranker ({contract.score.kind.value})"]
    return [*found, f"{contract.pooling.value} pooling", f"{contract.dimensions} dimensions"]


def peculiarities(reading: Reading) -> Iterator[tuple[str, str]]:
    """Names and values of everything else in the contract that is not its default."""
    contract = reading.contract
    yield "recognised by", reading.recognised
    yield "outputs", ", ".join(output.value for output in contract.outputs)
    if contract.score is not None:
        yield from _of_score(contract.score)
        return
    yield "sizes", _sizes(contract)
    yield "prompts from", reading.prompts_from
    for name, prompt in contract.prompts.by_name.items():
        is_default = " (the default)" if name == contract.prompts.default_name else ""
        yield f"  {name}", repr(prompt) + is_default
    if contract.template is not None:
        yield "template", repr(contract.template)
    if contract.suffix:
        yield "suffix", repr(contract.suffix)
    for name, token in (("first token", contract.beginning), ("last token", contract.ending)):
        if token is not None:
            yield name, f"id {token}, always"
    if contract.tasks:
        required = "; a text must name one" if contract.needs_task else ""
        yield "tasks", ", ".join(contract.tasks) + required
    if contract.dense_modules:
        yield "behind the pooling", ", ".join(contract.dense_modules)
    if contract.late is not None:
        yield from _of_late(contract.late)


def _sizes(contract: Contract) -> str:
    shown = ", ".join(map(str, contract.sizes))
    if contract.any_size_from is not None:
        shown += f", and any from {contract.any_size_from}"
    return f"{shown} (learned projections)" if contract.projections else shown


def _of_score(score: ScoreContract) -> Iterator[tuple[str, str]]:
    divided = "" if score.temperature == 1 else f" of the logit over {score.temperature:g}"
    yield "score", f"{score.activation.value}{divided}"
    if score.before is None:
        yield "reads", "the tokenizer's own pair" if score.kind.value == "classifier" else "a list of documents"
        return
    yield "before a document", repr(score.before)
    yield "after it", repr(score.after)
    if score.instruction:
        yield "instruction", repr(score.instruction)


def _of_late(late: LateContract) -> Iterator[tuple[str, str]]:
    yield "token vectors", f"{late.dimensions} dimensions"
    if late.query_marker is not None:
        yield "markers", f"ids {late.query_marker} (query), {late.document_marker} (document)"
    if late.query_tokens is not None:
        attended = "attended to" if late.attends_to_expansion else "not attended to"
        yield "queries", f"filled with masks to {late.query_tokens} tokens, {attended}"
    if late.skipped:
        yield "skipped in documents", f"{len(late.skipped)} tokens such as punctuation"
