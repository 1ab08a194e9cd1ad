"""Keys and values of leading tokens that texts share, computed once per adapter and kept while there is room.

In a causal backbone the states of a prompt do not depend on what follows it. A prefix that is not there yet joins the
batch as a piece of its own, and the layers keep its keys and values before any tail reads them, so it costs no pass.
Found by token ids, never by the prompt's text: a tokenizer may merge the end of a prompt with what follows.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from embedmux.server.batching.pack import Piece
from embedmux.server.contract import EACH_TOKEN
from embedmux.server.free_list import FreeList
from embedmux.server.records import Sequence

LEAST_TOKENS = 8  # below that a second piece costs more than it saves
Key = tuple[int, bytes]  # the adapter's handle, which is never used again, and the token ids


class PrefixCache:
    """Which rows of the pool hold which prefix; the least recently used make room. Only the device thread calls it."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._rows = self._fresh()
        self._places: OrderedDict[Key, tuple[int, int]] = OrderedDict()  # (begin, end)

    def split(self, sequences: list[Sequence], wholes: list[Piece]) -> tuple[list[Piece], list[int]]:
        """The pieces to pack for texts sorted by slot, sorted likewise, and where among them each text stands.

        ``wholes`` are the texts as one piece each.
        """
        in_use: set[Key] = set()
        pieces: list[Piece] = []
        places: list[int] = []
        for sequence, whole in zip(sequences, wholes, strict=True):
            shared = (
                0 if EACH_TOKEN.intersection(sequence.job.output.outputs) else int(sequence.job.shared[sequence.index])
            )
            key = (int(sequence.job.adapters[sequence.index]), whole.token_ids[:shared].tobytes())
            if not LEAST_TOKENS <= shared < len(whole.token_ids) or not self._holds(key, shared, in_use):
                places.append(len(pieces))
                pieces.append(whole)
                continue
            begin, end = self._places[key]
            if key not in in_use and key in self._new:
                self._new.discard(key)
                pieces.append(Piece(whole.token_ids[:shared], whole.slot, second=whole.second, target=begin))
            in_use.add(key)
            places.append(len(pieces))
            tail = whole.token_ids[shared:]
            pieces.append(Piece(tail, whole.slot, start=shared, second=whole.second, prefix=(begin, end)))
        return pieces, places

    def clear(self) -> None:
        """Forgets everything: after a batch that failed nobody knows which rows were written."""
        self._rows = self._fresh()
        self._places.clear()

    def _holds(self, key: Key, length: int, in_use: set[Key]) -> bool:
        """Whether the prefix has its rows, which may have to be made free first; new ones stand in ``_new``."""
        if key in self._places:
            self._places.move_to_end(key)
            return True
        if length > self._rows.size:
            return False
        while (begin := self._rows.allocate(length)) is None:
            oldest = next((other for other in self._places if other not in in_use), None)
            if oldest is None:
                return False
            self._rows.free(self._places.pop(oldest)[0])
        self._places[key] = (begin, begin + length)
        self._new.add(key)
        return True

    def _fresh(self) -> FreeList:
        self._new: set[Key] = set()
        return FreeList(self._num_rows - 1, alignment=1)  # the last row takes what nobody keeps


def make_pool(
    *, num_layers: int, num_rows: int, num_kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [L, P, Hkv, D]; on the CPU memory is taken as rows are written."""
    shape = (num_layers, num_rows, num_kv_heads, head_size)
    keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    return keys, values
