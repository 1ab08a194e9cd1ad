"""A plan -> flat arrays: sequences end to end, sorted by slot, no padding."""

from dataclasses import dataclass

import numpy as np
import torch

from embedmux.server.records import Batch, Sequence


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed batch on the host.

    token_ids and positions [T] int64, offsets [n + 1] int32, segment_offsets [G + 1] int32, segment_slots [G] int32;
    see Batch.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray
    segment_offsets: np.ndarray
    segment_slots: np.ndarray

    def to(self, device: torch.device) -> Batch:
        """The batch as tensors of just its size."""
        return Batch(
            token_ids=torch.from_numpy(self.token_ids).to(device),
            positions=torch.from_numpy(self.positions).to(device),
            offsets=torch.from_numpy(self.offsets).to(device),
            segment_offsets=torch.from_numpy(self.segment_offsets).to(device),
            segment_slots=torch.from_numpy(self.segment_slots).to(device),
        )


def order(sequences: list[Sequence]) -> list[Sequence]:
    """The batch's rows: by slot, so that each adapter's rows are one segment, then longest first."""
    return sorted(sequences, key=lambda sequence: (sequence.slot, -sequence.num_tokens))


def pack(sequences: list[Sequence]) -> Layout:
    """Sequences in their final order -> where everything stands.

    The segments' and the sequences' offsets stay in row order, so a kernel needs no per-token metadata.
    """
    lengths = np.array([sequence.num_tokens for sequence in sequences], dtype=np.int32)
    offsets = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    token_ids = np.concatenate(
        [
            sequence.job.token_ids[sequence.job.offsets[sequence.index] : sequence.job.offsets[sequence.index + 1]]
            for sequence in sequences
        ]
    )
    slots = np.array([sequence.slot for sequence in sequences], dtype=np.int32)
    starts = np.flatnonzero(np.concatenate(([True], slots[1:] != slots[:-1])))
    return Layout(
        token_ids=token_ids.astype(np.int64),
        positions=np.arange(len(token_ids), dtype=np.int64) - np.repeat(offsets[:-1], lengths),
        offsets=offsets,
        segment_offsets=np.append(offsets[starts], offsets[-1]).astype(np.int32),
        segment_slots=slots[starts],
    )
