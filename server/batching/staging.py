"""Batches of any content in buffers that never move: what a captured CUDA graph reads.

A bucket fixes the sizes (tokens, texts, segments); a batch fills the front of each array. What is left over says
nothing: sequences without tokens, segments without rows, and tokens that belong to no sequence.
"""

import numpy as np
import torch

from embedmux.server.batching.pack import Layout
from embedmux.server.records import BASE_MODEL, Batch

ALIGNMENT = 64


class Staging:
    """The buffers of one bucket: pinned on the host, the same bytes on the device, one copy between them.

    The copy reads the host's buffer while the caller goes on; the next ``fill`` waits for it, which costs nothing after
    a batch that was answered.
    """

    def __init__(self, *, max_tokens: int, max_texts: int, max_segments: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self.max_texts = max_texts
        self.max_segments = max_segments
        sizes = (max_tokens, max_tokens, max_texts + 1, max_segments + 1, max_segments)
        dtypes = (torch.int64, torch.int64, torch.int32, torch.int32, torch.int32)
        places, end = [], 0
        for size, dtype in zip(sizes, dtypes, strict=True):
            places.append((end, size * dtype.itemsize, dtype))
            end += -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arrays: list[np.ndarray] = [_view(self._host, *place).numpy() for place in places]
        self.batch = Batch(*(_view(self._device, *place) for place in places))

    def holds(self, layout: Layout) -> bool:
        """Whether the batch fits this bucket."""
        return (
            len(layout.token_ids) <= self.max_tokens
            and len(layout.offsets) <= self.max_texts + 1
            and len(layout.segment_slots) <= self.max_segments
        )

    def fill(self, layout: Layout) -> Batch:
        """Starts the copy of a batch to the device; the same Batch every time, read by whatever is queued behind."""
        if self._copied is not None:
            self._copied.synchronize()
        token_ids, positions, offsets, segment_offsets, segment_slots = self._arrays
        num_tokens, num_segments = len(layout.token_ids), len(layout.segment_slots)
        token_ids[:num_tokens] = layout.token_ids
        positions[:num_tokens] = layout.positions
        offsets[: len(layout.offsets)] = layout.offsets
        offsets[len(layout.offsets) :] = num_tokens
        segment_offsets[: num_segments + 1] = layout.segment_offsets
        segment_offsets[num_segments + 1 :] = num_tokens
        segment_slots[:num_segments] = layout.segment_slots
        segment_slots[num_segments:] = BASE_MODEL
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self.batch


def _view(buffer: torch.Tensor, start: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return buffer[start : start + size].view(dtype)
