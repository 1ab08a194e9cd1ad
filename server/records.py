"""The nouns the rooms exchange. Standard library only; frozen, so a record can be shared between threads."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from embedmux.server.errors import EmbedmuxError

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


class Pooling(enum.Enum):
    """How token states become one vector."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Space:
    """What makes vectors comparable; see server/spaces.py. ``calibration`` is empty for uncalibrated encodings."""

    id: str
    calibration: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A resolved instruction: the adapter's handle (BASE_MODEL for none), the literal prompt and the space."""

    adapter: int
    adapter_id: str
    prompt: str
    space: Space


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised text. ``original`` counts tokens before the cut, prompt and special tokens included.

    ``shared``: so many leading tokens are the prompt's (or a reranker's instruction and query), hence the same in
    other texts; 0 where none are.
    """

    ids: list[int]
    original: int
    shared: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether the model reads fewer tokens than the text has."""
        return len(self.ids) < self.original


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the engine makes of token states; rows that share a spec and a calibration are encoded together.

    A row holds, in the order of ``Output`` and as far as they are in ``outputs``: the dense vector; for sparse weights
    a uint32 count, then room for one uint32 id and one float32 weight a token; for token vectors a uint32 count, then
    room for one vector a token; a reranker's float32 logit.
    """

    dimensions: int
    encoding: Encoding
    outputs: tuple[Output, ...] = (Output.DENSE,)
    token_dimensions: int = 0

    def row_bytes(self, num_tokens: int) -> int:
        """Bytes of the row of a text with so many tokens."""
        return sum(self.part_bytes(output, num_tokens) for output in self.outputs)

    def part_bytes(self, output: Output, num_tokens: int) -> int:
        """Bytes that one output takes in that row."""
        if output is Output.DENSE:
            return self.encoding.row_bytes(self.dimensions)
        if output is Output.SPARSE:
            return 4 + 8 * num_tokens
        if output is Output.TOKENS:
            return 4 + self.encoding.row_bytes(self.token_dimensions) * num_tokens
        return 4


@dataclass(eq=False, slots=True)
class EngineJob:
    """Texts of one request on their way through the engine; identity, not content, tells jobs apart.

    token_ids [T] int32, offsets [n + 1] int32, adapters [n] int32 handles (BASE_MODEL for none);
    ``out`` takes n rows of ``output.encoding.row_bytes(output.dimensions)`` bytes.
    """

    id: int
    token_ids: np.ndarray
    offsets: np.ndarray
    adapters: np.ndarray
    output: OutputSpec
    deadline: float | None
    out: memoryview
    remaining: int = 0
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sequence:
    """One text in the engine's queue. ``enqueued`` and ``deadline`` are monotonic seconds."""

    job: EngineJob
    index: int
    num_tokens: int
    slot: int
    enqueued: float
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences on the device, sorted by slot: what a backbone reads.

    token_ids and positions [T] int64; offsets [n + 1] int32, where each sequence starts;
    segment_offsets [G + 1] int32 and segment_slots [G] int32, rows that share an adapter (BASE_MODEL for none).
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    segment_offsets: torch.Tensor
    segment_slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """One matmul of the backbone: the checkpoint linears it fuses, in order, with their output widths."""

    name: str
    slices: tuple[tuple[str, int], ...]
    in_features: int


@dataclass(frozen=True, slots=True)
class LowRankTables:
    """Where the kernels find every loaded adapter: ``data`` [E] holds all factors, ``tables`` a linear's name ->
    int64 [max_slots, J, 3] of (a_offset, b_offset, rank) in elements for each slot and slice."""

    data: torch.Tensor
    tables: dict[str, torch.Tensor]


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
