"""A plan -> flat tensors: sequences end to end, sorted by slot, no padding."""

import numpy as np
import torch

from embedmux.server.records import Batch, Sequence


def order(sequences: list[Sequence]) -> list[Sequence]:
    """The batch's rows: by slot, so that each adapter's rows are one segment, then longest first."""
    return sorted(sequences, key=lambda sequence: (sequence.slot, -sequence.num_tokens))


def pack(sequences: list[Sequence], device: torch.device) -> Batch:
    """Sequences in their final order -> a Batch on the device.

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
    positions = np.arange(len(token_ids), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    slots = np.array([sequence.slot for sequence in sequences], dtype=np.int32)
    starts = np.flatnonzero(np.concatenate(([True], slots[1:] != slots[:-1])))
    segment_offsets = np.append(offsets[starts], offsets[-1]).astype(np.int32)
    return Batch(
        token_ids=torch.from_numpy(token_ids.astype(np.int64)).to(device),
        positions=torch.from_numpy(positions).to(device),
        offsets=torch.from_numpy(offsets).to(device),
        segment_offsets=torch.from_numpy(segment_offsets).to(device),
        segment_slots=torch.from_numpy(slots[starts]).to(device),
    )
