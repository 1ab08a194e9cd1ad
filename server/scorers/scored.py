"""What every scorer is given, and what it gives back."""

from dataclasses import dataclass, field
from typing import Protocol

from embedmux.server.errors import EmbedmuxError, InvalidRequest
from embedmux.server.records import Terms, Truncate


@dataclass(frozen=True, slots=True)
class Question:
    """A query and its documents by their places in the request. ``instruction`` None is the model's own."""

    query: str = field(repr=False)
    documents: dict[int, str] = field(repr=False)
    instruction: str | None = field(repr=False)
    truncate: Truncate
    terms: Terms
    echoes: bool


@dataclass(slots=True)
class Scored:
    """By a document's place: its raw logit, its tokens as read and before the cut, what was read, or its error."""

    logits: dict[int, float] = field(default_factory=dict)
    lengths: dict[int, tuple[int, int]] = field(default_factory=dict)
    rendered: dict[int, str] = field(default_factory=dict, repr=False)
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)


class Scorer(Protocol):
    """One way of scoring."""

    async def score(self, question: Question) -> Scored:
        """Every document has a logit or an error; raises what concerns the whole request, such as a bad query."""
        ...


def check_instruction(instruction: str | None, *, takes_one: bool) -> None:
    """Raises InvalidRequest for a free instruction that the model has no place for, and for an empty one."""
    if instruction is None:
        return
    if not takes_one:
        raise InvalidRequest("this reranker's template takes no instruction; leave it out")
    if not instruction:
        raise InvalidRequest("the instruction is empty; leave it out for the model's own, or say what is looked for")
