"""One row of the table of known families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.contract import Contract, Prompts
from embedmux.server.records import Pooling

NO_PROMPTS = Prompts()


def _never(evidence: Evidence) -> bool:
    return False


def _unchanged(evidence: Evidence, contract: Contract) -> Contract:
    return contract


@dataclass(frozen=True, slots=True)
class Family:
    """How models of a family are recognised, and what their folders leave unsaid.

    A folder is of the family when its model_type is among ``types`` and ``marks`` finds something in it or one of its
    names ends with ``named``. ``prompts`` hold where the checkpoint has none of that name, ``pooling`` where it lists
    no module. ``complete`` adds what is peculiar. A ``refusal`` says why the family is known and not served.
    """

    name: str
    models: str  # examples, as `embedmux models` shows them
    types: tuple[str, ...]
    named: str | None = None
    marks: Callable[[Evidence], bool] = _never
    prompts: Prompts = NO_PROMPTS
    template: str | None = None
    instruction: str = ""  # what the template says when the request gives none
    pooling: Pooling | None = None
    sizes: tuple[int, ...] = ()  # smaller ones that the model card declares
    any_size_from: int | None = None
    max_tokens: int | None = None
    beginning: str | None = None  # tokens every text must have
    ending: str | None = None
    custom: tuple[str, ...] = ()  # classes of modules.json that the checkpoint brings and this version computes
    code: tuple[str, ...] = ()  # likewise how classes of auto_map may start, beside those of its architecture
    complete: Callable[[Evidence, Contract], Contract] = _unchanged
    refusal: str | None = None
