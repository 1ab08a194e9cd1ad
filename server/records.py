"""The nouns the rooms exchange. Standard library only; frozen, so a record can be shared between threads."""

from __future__ import annotations

import enum
import itertools
from collections import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from embedmux.server.errors import EmbedmuxError

MAX_SPANS = 64
BASE_MODEL = -1  # the adapter handle and the slot of a text that goes through the bare backbone


class Encoding(enum.Enum):
    """How one value of a vector is stored in the reply; the member's value is its name on the wire."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"

    @property
    def is_calibrated(self) -> bool:
        """Whether codes mean something only together with per-dimension ranges."""
        return self in (Encoding.INT8, Encoding.UINT8)

    def row_bytes(self, dimensions: int) -> int:
        """Bytes of one vector."""
        if self in (Encoding.BINARY, Encoding.UBINARY):
            return (dimensions + 7) // 8
        return dimensions * {Encoding.FLOAT32: 4, Encoding.FLOAT16: 2, Encoding.BFLOAT16: 2}.get(self, 1)


class Output(enum.Enum):
    """What may be made of a text; the member's value is its name on the wire. A row holds them in this order."""

    DENSE = "dense"  # the pooled vector
    SPARSE = "sparse"  # weights by token id
    TOKENS = "tokens"  # one vector a token, for late interaction
    SCORE = "score"  # a reranker's raw logit, float32


class Role(enum.Enum):
    """Which side of a retrieval task a text stands on."""

    QUERY = "query"
    DOCUMENT = "document"


class Truncate(enum.Enum):
    """What to do with a text over the model's token limit: refuse it, or cut its end or its start."""

    NONE = "none"
    END = "end"
    START = "start"


class Placement(enum.Enum):
    """How an adapter is applied; fixed when it is loaded, since the two differ in the last bits of a vector."""

    LOW_RANK = "low-rank"  # its factors, beside the base weights
    MERGED = "merged"  # added into a copy of the weights it changes


class Priority(enum.Enum):
    """Which class of work a request is of; each has a share of the device (``bulk_share``)."""

    INTERACTIVE = "interactive"  # somebody waits for it
    BULK = "bulk"  # takes what is left, and a share of its own where nothing is


class Pooling(enum.Enum):
    """How token states become one vector."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


@dataclass(slots=True)
class Notes:
    """What one call took, for whoever watches calls; numbers alone, never a text. The event loop writes it, no thread.

    ``spans`` are (name, begin, end) in seconds of time.monotonic; a long stream keeps its first ``MAX_SPANS``.
    ``num_tokens`` counts what was given to the engine.
    """

    num_texts: int = 0
    num_tokens: int = 0
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def span(self, name: str, begin: float, end: float) -> None:
        """Keeps a stretch of time."""
        if len(self.spans) < MAX_SPANS:
            self.spans.append((name, begin, end))

    def answered(self, submitted: float, began: float, ended: float) -> None:
        """Keeps what the engine says of a job: when its first batch began (0: none did) and when it was answered."""
        self.span("queue", submitted, began or ended)
        if began:
            self.span("compute", began, ended)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served: until when (time.monotonic's clock, in seconds), for whom, and how urgently.

    ``tenant`` is whoever shares the device by weight; "" is everybody who does not say. ``notes`` stay in the front.
    """

    deadline: float | None = None
    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    notes: Notes | None = field(default=None, compare=False, repr=False)


ANY_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Space:
    """What makes vectors comparable; see server/spaces.py. ``calibration`` is empty for uncalibrated encodings."""

    id: str
    calibration: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A resolved instruction: the adapter's handle (BASE_MODEL for none), the literal prompt and the space.

    ``role`` is the text's side where it is known.
    """

    adapter: int
    adapter_id: str
    prompt: str
    space: Space
    role: Role | None = None


@dataclass(slots=True)  # made for every text: frozen ones take three times as long
class Tokens:
    """One tokenised text. ``original`` counts tokens before the cut, prompt and special tokens included.

    ``shared``: so many leading tokens are the prompt's (or a reranker's instruction and query), hence the same in
    other texts; 0 where none are. ``second`` is the first token of a pair's second text, 0 for none.
    """

    ids: list[int]
    original: int
    shared: int = 0
    second: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether the model reads fewer tokens than the text has."""
        return len(self.ids) < self.original


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the engine makes of token states; rows that share a spec and a calibration are encoded together.

    A row holds, in the order of ``Output`` and as far as they are in ``outputs``: the dense vector; for sparse weights
    a uint32 count, then room for one uint32 id and one float32 weight a token; for token vectors a uint32 count, then
    room for one vector a token, or for ``most_vectors`` where that is not 0; a reranker's float32 logit.
    """

    dimensions: int
    encoding: Encoding
    outputs: tuple[Output, ...] = (Output.DENSE,)
    token_dimensions: int = 0
    most_vectors: int = 0

    def row_bytes(self, num_tokens: int) -> int:
        """Bytes of the row of a text with so many tokens."""
        return sum(self.part_bytes(output, num_tokens) for output in self.outputs)

    def row_starts(self, lengths: abc.Sequence[int]) -> abc.Sequence[int]:
        """Where the rows of texts with so many tokens begin, and where the last one ends: n + 1 numbers."""
        fixed, each = self.row_bytes(0), self.row_bytes(1) - self.row_bytes(0)
        if not each:
            return range(0, fixed * (len(lengths) + 1), fixed)
        return list(itertools.accumulate((fixed + each * length for length in lengths), initial=0))

    def total_bytes(self, num_texts: int, num_tokens: int) -> int:
        """Bytes of all rows of so many texts, which have so many tokens together."""
        return num_texts * self.row_bytes(0) + num_tokens * (self.row_bytes(1) - self.row_bytes(0))

    def part_bytes(self, output: Output, num_tokens: int) -> int:
        """Bytes that one output takes in that row."""
        if output is Output.DENSE:
            return self.encoding.row_bytes(self.dimensions)
        if output is Output.SPARSE:
            return 4 + 8 * num_tokens
        if output is Output.TOKENS:
            return 4 + self.encoding.row_bytes(self.token_dimensions) * (self.most_vectors or num_tokens)
        return 4


@dataclass(eq=False, slots=True)
class EngineJob:
    """Texts of one request on their way through the engine; identity, not content, tells jobs apart.

    token_ids [T] int32, offsets [n + 1] int32, adapters [n] int32 handles (BASE_MODEL for none), shared [n] and second
    [n] int32 as in ``Tokens``; ``out`` takes the rows of the texts one after another (``output.row_bytes``). ``model``
    is the place of the model among those of the engine.
    """

    id: int
    token_ids: np.ndarray
    offsets: np.ndarray
    adapters: np.ndarray
    output: OutputSpec
    terms: Terms
    out: memoryview
    shared: np.ndarray
    second: np.ndarray
    model: int = 0
    remaining: int = 0
    enqueued: float = 0.0  # monotonic seconds, as is ``expected``: when it should be answered
    expected: float = 0.0
    began: float = 0.0  # and when the first batch with a text of it was begun; 0: none was
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)
    row_starts: abc.Sequence[int] = ()

    def __post_init__(self) -> None:
        self.row_starts = self.output.row_starts((self.offsets[1:] - self.offsets[:-1]).tolist())


@dataclass(eq=False, slots=True)  # made for every text, as Tokens
class Sequence:
    """One text in the engine's queue. ``enqueued`` and ``due``, its place in its tenant's line, are monotonic seconds.

    ``cost`` is what its tokens add to a batch, in seconds. ``key`` says what is computed, where that matters.
    """

    job: EngineJob
    index: int
    num_tokens: int
    slot: int
    enqueued: float
    due: float = 0.0
    cost: float = 0.0
    key: bytes = b""
    is_large: bool = False  # its request takes more than a batch


@dataclass(frozen=True, slots=True)
class LowRank:
    """One linear's update as stored by PEFT: a [rank, in], b [out, rank], y += scale · b(a x)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Per-dimension ranges for int8 and uint8 codes: ranges [2, dimensions] float32 (min, max)."""

    id: str
    dimensions: int
    ranges: torch.Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """One validated adapter, immutable: its weights by linear name, and what it says about its task."""

    id: str
    digest: str
    path: str
    task: str | None
    prompts: dict[str, str]
    targets: dict[str, LowRank]
    calibrations: dict[int, Calibration]
    max_rank: int
    num_bytes: int
