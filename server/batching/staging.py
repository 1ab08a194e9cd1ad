"""Batches of any content in buffers that never move: what a captured CUDA graph reads.

A bucket fixes the sizes (tokens, pieces, segments); a batch fills the front of each array. What is left over says
nothing: pieces without tokens, segments without rows, and tokens that belong to no piece.
"""

from __future__ import annotations

import numpy as np
import torch

from embedmux.server.batching.pack import NO_PREFIX, PLAIN, Layout, Packing, make_batch
from embedmux.server.packed import Batch
from embedmux.server.records import BASE_MODEL

ALIGNMENT = 64
MAX_PREFIXES = 16  # that a batch of a captured graph may use
WIDE = ("token_ids", "positions", "types", "pooled_rows", "source", "target")  # int64, the others int32


class Staging:
    """The buffers of one bucket: pinned on the host, the same bytes on the device, one copy between them.

    The copy reads the host's buffer while the caller goes on; the next ``fill`` waits for it, which costs nothing after
    a batch that was answered.
    """

    def __init__(
        self, *, max_tokens: int, max_texts: int, max_segments: int, device: torch.device, packing: Packing = PLAIN
    ) -> None:
        self._packing = packing
        prefixes, kept = (2 * MAX_PREFIXES + 2, max_tokens) if packing.pool is not None else (2, 0)
        self._sizes = {
            "token_ids": max_tokens, "positions": max_tokens, "types": max_tokens, "offsets": max_texts + 1,
            "segment_offsets": max_segments + 1, "segment_pieces": max_segments + 1, "segment_slots": max_segments,
            "pooled_rows": max_texts, "num_keys": max_texts, "prefix_offsets": prefixes, "prefix_of": max_texts,
            "source": kept, "target": kept,
        }  # fmt: skip
        places, end = {}, 0
        for name, size in self._sizes.items():
            dtype = torch.int64 if name in WIDE else torch.int32
            places[name] = (end, size * dtype.itemsize, dtype)
            end += -(-size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arrays = {name: _view(self._host, *place).numpy() for name, place in places.items()}
        counting = torch.arange(max_texts + 1, dtype=torch.int32, device=device)
        on_device = {name: _view(self._device, *place) for name, place in places.items()}
        self.batch = make_batch(on_device, counting, packing)

    def holds(self, layout: Layout) -> bool:
        """Whether the batch fits this bucket."""
        return all(len(getattr(layout, name)) <= size for name, size in self._sizes.items())

    def fill(self, layout: Layout) -> Batch:
        """Starts the copy of a batch to the device; the same Batch every time, read by whatever is queued behind."""
        if self._copied is not None:
            self._copied.synchronize()
        num_tokens, num_pieces = len(layout.token_ids), len(layout.prefix_of)
        # The last row of the pool belongs to nobody: there go the keys of no prefix.
        rest = {
            "offsets": num_tokens, "segment_offsets": num_tokens, "segment_pieces": num_pieces,
            "segment_slots": BASE_MODEL, "prefix_offsets": self._packing.pool_rows, "prefix_of": NO_PREFIX,
            "pooled_rows": 0, "num_keys": 0, "source": 0, "target": max(0, self._packing.pool_rows - 1),
        }  # fmt: skip
        for name, array in self._arrays.items():
            filled: np.ndarray = getattr(layout, name)
            array[: len(filled)] = filled
            if name in rest:  # what tokens of no piece say does not matter
                array[len(filled) :] = rest[name]
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self.batch


def _view(buffer: torch.Tensor, start: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return buffer[start : start + size].view(dtype)
