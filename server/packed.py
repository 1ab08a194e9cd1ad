"""What lies on the device: packed batches, token states, where adapters stand. Frozen; torch only in annotations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """One matmul of the backbone: the checkpoint linears it fuses, in order, with their output widths.

    ``starts`` are the first rows of the slices in their linears' weights, () for 0 everywhere: a checkpoint may store
    as one linear what is two slices here, such as gate and up. A token embedding is a linear too, of one-hot rows:
    ``is_lookup`` says that its weight is stored the other way round and that only the checkpoint's own adapters,
    not PEFT's, change it.
    """

    name: str
    slices: tuple[tuple[str, int], ...]
    in_features: int
    starts: tuple[int, ...] = ()
    is_lookup: bool = False

    @property
    def parts(self) -> list[tuple[str, int, int]]:
        """(checkpoint linear, first row, rows) of every slice."""
        starts = self.starts or (0,) * len(self.slices)
        return [(name, start, width) for (name, width), start in zip(self.slices, starts, strict=True)]

    @property
    def targets(self) -> dict[str, tuple[int, int]]:
        """Checkpoint linear -> (in_features, out_features)."""
        widths: dict[str, int] = {}
        for name, start, width in self.parts:
            widths[name] = max(widths.get(name, 0), start + width)
        return {name: (self.in_features, width) for name, width in widths.items()}


@dataclass(frozen=True, slots=True)
class LowRankTables:
    """What the linears of a backbone share. Where the kernels find every loaded adapter: ``data`` [E] holds all
    factors, ``tables`` a linear's name -> int64 [max_slots, J, 3] of (a_offset, b_offset, rank) in elements for each
    slot and slice. ``is_int8``: weights are kept and multiplied as int8 codes. ``linears``: each enters itself by name.
    """

    data: torch.Tensor
    tables: dict[str, torch.Tensor]
    is_int8: bool = False
    linears: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segments:
    """Consecutive rows that share an adapter: offsets [G + 1] int32, slots [G] int32 (BASE_MODEL for none).

    Rows of a merged adapter are rows of the base model to the kernels, and have weights of their own: sets [G] int32
    says which, 0 for the base model's and i + 1 for those of the slot ``merged[i]``. None where nobody is merged.
    """

    offsets: torch.Tensor
    slots: torch.Tensor
    merged: tuple[int, ...] = ()
    sets: torch.Tensor | None = None

    def adapters(self) -> list[int]:
        """The slot of each segment's adapter, merged or not, on the host."""
        slots: list[int] = self.slots.tolist()
        if self.sets is None:
            return slots
        sets = self.sets.tolist()
        return [self.merged[of - 1] if of else slot for of, slot in zip(sets, slots, strict=True)]

    def runs(self) -> Iterator[tuple[int, int, int, Segments]]:
        """(first row, last row, weight set, the segments of these rows) of each run of rows with the same weights."""
        assert self.sets is not None
        ends, sets = self.offsets.tolist(), self.sets.tolist()
        for weight_set, group in itertools.groupby(range(len(sets)), sets.__getitem__):
            members = list(group)
            first, last = members[0], members[-1] + 1
            own = Segments(self.offsets[first : last + 1] - ends[first], self.slots[first:last])
            yield ends[first], ends[last], weight_set, own


@dataclass(frozen=True, slots=True)
class PooledRows:
    """One row of each sequence: rows [n] int64, and the segments they form among themselves.

    offsets [n + 1] int32 is 0, 1, .. n: where each sequence stands once only these rows are left.
    """

    rows: torch.Tensor
    segments: Segments
    offsets: torch.Tensor


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Keys and values of leading tokens that several sequences share, by layer: keys and values [L, P, Hkv, D].

    offsets [m + 1] int32 cut the P rows into prefixes, of [n] int32 is each sequence's prefix, -1 for none. Before a
    layer's attention the rows ``source`` [c] int64 of its keys and values are kept at the rows ``target`` [c] int64.
    """

    keys: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    of: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed sequences on the device, sorted by slot: what a backbone reads.

    token_ids and positions [T] int64, types [T] int64 (0 and, behind a pair's boundary, 1); offsets [n + 1] int32,
    where each sequence starts; segments: rows that share an adapter. pooled: the rows that leave the last layer, None
    if all do. prefixes: None for a model that shares none. num_keys [n] int32: how many first tokens of a sequence the
    others attend to, None for all.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    offsets: torch.Tensor
    segments: Segments
    pooled: PooledRows | None = None
    prefixes: SharedPrefixes | None = None
    num_keys: torch.Tensor | None = None

    @property
    def state_offsets(self) -> torch.Tensor:
        """[n + 1] int32: where each sequence stands among the rows that leave the last layer."""
        return self.offsets if self.pooled is None else self.pooled.offsets


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The norm behind a pre-norm backbone's last layer: kind "layer" or "rms", weight and bias [hidden]."""

    kind: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float


@dataclass(frozen=True, slots=True)
class TokenStates:
    """What a backbone leaves: hidden [R, H], plus residual of the same shape if there is one, then the norm.

    offsets [n + 1] int32: the rows of each sequence, all its tokens or the pooled one alone.
    """

    hidden: torch.Tensor
    offsets: torch.Tensor
    residual: torch.Tensor | None = None
    norm: FinalNorm | None = None
