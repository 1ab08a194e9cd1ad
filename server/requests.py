"""What a client asks and what it is answered, free of proto. Standard library only; frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedmux.server.records import ANY_TERMS, Encoding, Output, Role, Space, Terms, Truncate

if TYPE_CHECKING:
    from embedmux.server.errors import EmbedmuxError


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a text is for. ``None`` everywhere is the bare model with its default prompt.

    Here as below, what a client wrote is left out of the repr: no message and no log may repeat it.
    """

    task: str | None = None
    role: Role | None = None
    adapter: str | None = None
    prompt_name: str | None = None
    prompt: str | None = field(default=None, repr=False)
    instruction: str | None = field(default=None, repr=False)  # free words for the model's own template


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """One Embed request, free of proto.

    ``forces_dimensions`` asks for a size that the model does not declare; ``echoes`` for the rendered texts.
    """

    texts: tuple[str, ...] = field(repr=False)
    instructions: tuple[Instruction, ...]
    dimensions: int | None = None
    encoding: Encoding = Encoding.FLOAT32
    truncate: Truncate = Truncate.NONE
    model: str | None = None
    terms: Terms = ANY_TERMS
    outputs: tuple[Output, ...] = (Output.DENSE,)
    forces_dimensions: bool = False
    echoes: bool = False


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """One answer: ``vectors`` holds a row per text, zero bytes where ``errors`` has an entry for it.

    ``sparse`` has, per text, token ids uint32 and weights float32; ``token_vectors`` per text the rows of its tokens in
    the encoding. Both are empty unless asked for, and so is ``rendered``.
    """

    vectors: bytes
    encoding: Encoding
    dimensions: int
    num_tokens: list[int]
    num_tokens_original: list[int]
    spaces: list[Space | None]
    errors: dict[int, EmbedmuxError]
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)
    token_vectors: list[bytes] = field(default_factory=list)
    token_dimensions: int = 0
    rendered: list[str] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What a text is embedded from. ``original`` counts tokens before the cut; ``prompt`` is the literal prefix."""

    ids: list[int]
    tokens: list[str] = field(repr=False)
    original: int
    prompt: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RerankJob:
    """One Rerank request: every document is scored against the query. ``instruction`` None is the model's own."""

    query: str = field(repr=False)
    documents: tuple[str, ...] = field(repr=False)
    instruction: str | None = field(default=None, repr=False)
    truncate: Truncate = Truncate.NONE
    model: str | None = None
    terms: Terms = ANY_TERMS
    echoes: bool = False


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One entry per document, in the order of the request; logit and score are 0 where ``errors`` has an entry.

    ``score`` is the model's activation of its raw logit. ``rendered`` is empty unless it was asked for.
    """

    logits: list[float]
    scores: list[float]
    num_tokens: list[int]
    num_tokens_original: list[int]
    errors: dict[int, EmbedmuxError]
    rendered: list[str] = field(default_factory=list, repr=False)
