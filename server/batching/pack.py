"""A plan -> flat arrays: pieces end to end, sorted by slot, no padding."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import torch

from embedmux.server.packed import Batch, PooledRows, Segments, SharedPrefixes
from embedmux.server.records import BASE_MODEL, Pooling, Sequence

NO_PREFIX = -1
NO_SECOND = np.iinfo(np.int64).max  # behind every position
PREFIX_ARRAYS = ("prefix_offsets", "prefix_of", "source", "target")


@dataclass(slots=True)  # made for every text, as Tokens
class Piece:
    """Tokens that are packed as one sequence: a text, its tail behind a shared prefix, or such a prefix itself.

    token_ids int32; ``start`` is the position of the first one. ``second`` is the position from which a pair's tokens
    are of type 1, 0 for none. ``prefix`` names rows [begin, end) of the pool that stand before the tokens; ``target``
    is where in the pool their own keys and values are kept, -1 for nowhere.
    """

    token_ids: np.ndarray
    slot: int
    start: int = 0
    second: int = 0
    prefix: tuple[int, int] | None = None
    target: int = -1


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed batch on the host; see Batch.

    token_ids, positions and types [T] int64, offsets [n + 1] int32; segment_offsets (in tokens) and segment_pieces (in
    pieces) [G + 1] int32, segment_slots [G] int32; pooled_rows [n] int64; num_keys [n] int32; prefix_offsets [m + 1]
    and prefix_of [n] int32, source and target [c] int64.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    segment_offsets: np.ndarray
    segment_pieces: np.ndarray
    segment_slots: np.ndarray
    pooled_rows: np.ndarray
    num_keys: np.ndarray
    prefix_offsets: np.ndarray
    prefix_of: np.ndarray
    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, slots=True)
class Packing:
    """What a model wants of its batches.

    ``pooled``: which row of a piece leaves the last layer, None for all. ``pool``: keys and values [L, P, Hkv, D] of
    shared prefixes, None for a model that shares none. ``unread_token``: a run of this id at the end of a piece is
    attended to by nobody, as the mask tokens that fill up a ColBERT query; None where all are.
    """

    pooled: Pooling | None = None
    pool: tuple[torch.Tensor, torch.Tensor] | None = None
    unread_token: int | None = None

    @property
    def pool_rows(self) -> int:
        """P, 0 without a pool."""
        return 0 if self.pool is None else self.pool[0].shape[1]

    @property
    def arrays(self) -> list[str]:
        """What of a layout such a model reads."""
        names = ["token_ids", "positions", "types", "offsets", "segment_offsets", "segment_slots"]
        if self.pooled is not None:
            names += ["pooled_rows", "segment_pieces"]
        if self.pool is not None:
            names += PREFIX_ARRAYS
        return names if self.unread_token is None else [*names, "num_keys"]


PLAIN = Packing()


def order(sequences: list[Sequence]) -> list[Sequence]:
    """The batch's rows: by slot, so that each adapter's rows are one segment, then longest first."""
    return sorted(sequences, key=lambda sequence: (sequence.slot, -sequence.num_tokens))


def piece_of(sequence: Sequence) -> Piece:
    """A whole text."""
    job, index = sequence.job, sequence.index
    ids = job.token_ids[job.offsets.item(index) : job.offsets.item(index + 1)]
    return Piece(ids, sequence.slot, second=job.second.item(index))


def pack(pieces: list[Piece], packing: Packing) -> Layout:
    """Pieces in their final order -> where everything stands.

    The segments' and the pieces' offsets stay in row order, so a kernel needs no per-token metadata.
    """
    lengths = np.array([len(piece.token_ids) for piece in pieces], dtype=np.int32)
    offsets = np.zeros(len(pieces) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    token_ids = np.concatenate([piece.token_ids for piece in pieces])
    starts = np.array([piece.start for piece in pieces], dtype=np.int64)
    positions = np.arange(len(token_ids), dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)
    seconds = np.array([piece.second or NO_SECOND for piece in pieces], dtype=np.int64)
    slots = np.array([piece.slot for piece in pieces], dtype=np.int32)
    firsts = np.flatnonzero(np.concatenate(([True], slots[1:] != slots[:-1])))
    prefix_offsets, prefix_of = _prefixes(pieces, packing.pool_rows)
    kept = [index for index, piece in enumerate(pieces) if piece.target >= 0]
    return Layout(
        token_ids=token_ids.astype(np.int64),
        positions=positions,
        types=(positions >= np.repeat(seconds, lengths)).astype(np.int64),
        offsets=offsets,
        segment_offsets=np.append(offsets[firsts], offsets[-1]).astype(np.int32),
        segment_pieces=np.append(firsts, len(pieces)).astype(np.int32),
        segment_slots=slots[firsts],
        pooled_rows=(offsets[:-1] if packing.pooled is Pooling.CLS else offsets[1:] - 1).astype(np.int64),
        num_keys=lengths if packing.unread_token is None else _num_keys(pieces, packing.unread_token),
        prefix_offsets=prefix_offsets,
        prefix_of=prefix_of,
        source=_ranges([(int(offsets[index]), len(pieces[index].token_ids)) for index in kept]),
        target=_ranges([(pieces[index].target, len(pieces[index].token_ids)) for index in kept]),
    )


def to_device(layout: Layout, packing: Packing, device: torch.device, *, merged: Container[int] = ()) -> Batch:
    """The batch as tensors of just its size; ``merged`` are the slots of merged adapters (see Segments)."""

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    arrays = {name: put(getattr(layout, name)) for name in packing.arrays}
    counting = torch.arange(len(layout.offsets), dtype=torch.int32, device=device) if packing.pooled else None
    found = tuple(slot for slot in dict.fromkeys(layout.segment_slots.tolist()) if slot in merged)
    return make_batch(arrays, counting, packing, merged=found)


def make_batch(
    arrays: dict[str, torch.Tensor], counting: torch.Tensor | None, packing: Packing, *, merged: tuple[int, ...] = ()
) -> Batch:
    """A Batch over the arrays that the packing names, on the device.

    ``counting`` [n + 1] int32 is 0, 1, .. n, None where no rows are pooled.
    """
    slots, sets = arrays["segment_slots"], None
    if merged:
        sets = torch.zeros_like(slots)
        for index, slot in enumerate(merged):
            sets[slots == slot] = index + 1
        slots = slots.masked_fill(sets > 0, BASE_MODEL)
    pooled = prefixes = None
    if packing.pooled is not None:
        assert counting is not None
        pooled = PooledRows(arrays["pooled_rows"], Segments(arrays["segment_pieces"], slots, merged, sets), counting)
    if packing.pool is not None:
        prefixes = SharedPrefixes(*packing.pool, *(arrays[name] for name in PREFIX_ARRAYS))
    return Batch(
        token_ids=arrays["token_ids"],
        positions=arrays["positions"],
        types=arrays["types"],
        offsets=arrays["offsets"],
        segments=Segments(arrays["segment_offsets"], slots, merged, sets),
        pooled=pooled,
        prefixes=prefixes,
        num_keys=arrays["num_keys"] if packing.unread_token is not None else None,
    )


def _prefixes(pieces: list[Piece], pool_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets that cut the whole pool, and each piece's prefix: what lies between two prefixes is one nobody uses."""
    if not pool_rows:
        return np.zeros(2, dtype=np.int32), np.full(len(pieces), NO_PREFIX, dtype=np.int32)
    used = sorted({piece.prefix for piece in pieces if piece.prefix is not None})
    edges = [0, *(edge for prefix in used for edge in prefix), pool_rows]
    places = {prefix: 2 * place + 1 for place, prefix in enumerate(used)}
    of = [NO_PREFIX if piece.prefix is None else places[piece.prefix] for piece in pieces]
    return np.array(edges, dtype=np.int32), np.array(of, dtype=np.int32)


def _num_keys(pieces: list[Piece], unread: int) -> np.ndarray:
    """Tokens of each piece up to the last one that is not ``unread``; the first always counts."""
    found = [np.flatnonzero(piece.token_ids != unread) for piece in pieces]
    return np.array([places[-1] + 1 if len(places) else 1 for places in found], dtype=np.int32)


def _ranges(runs: list[tuple[int, int]]) -> np.ndarray:
    """The numbers of runs (first, count), one after another, int64."""
    found = [np.arange(first, first + count, dtype=np.int64) for first, count in runs]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
