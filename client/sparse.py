"""Sparse weights: for every text, token ids with how much each matters, and the lexical score of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedmux.client.errors import UnexpectedReply
from embedmux.client.ragged import Rows, chosen_texts, offsets_of, take
from embedmux.client.similarity import check_one_space
from embedmux.proto import embed_pb2
from embedmux.server.errors import EmbedmuxError
from embedmux.server.records import Space


@dataclass(frozen=True, slots=True, eq=False)
class SparseWeights:
    """Texts end to end: text i has the token ids ids[offsets[i]:offsets[i + 1]] and as many weights.

    ids [k] uint32, each once in its text; weights [k] float32; offsets [n + 1] int64. A failed text has none, and its
    ``spaces`` entry is None.
    """

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    spaces: list[Space | None]
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.spaces)

    def __getitem__(self, rows: Rows) -> SparseWeights:
        """The chosen texts, in the chosen order; an int gives one. Masks and index arrays work as in numpy."""
        chosen = chosen_texts(len(self), rows)
        positions, offsets = take(self.offsets, chosen)
        return SparseWeights(
            self.ids[positions],
            self.weights[positions],
            offsets,
            [self.spaces[text] for text in chosen],
            {new: self.errors[text] for new, text in enumerate(chosen.tolist()) if text in self.errors},
        )

    def weights_of(self, text: int) -> dict[int, float]:
        """Token id -> weight of one text."""
        part = self[text]
        return dict(zip(part.ids.tolist(), part.weights.tolist(), strict=True))

    def dot(self, other: SparseWeights) -> NDArray[np.float32]:
        """Lexical scores [len(self), len(other)]: the products of weights, summed over the ids both texts have.

        Sums in float64. Raises SpaceMismatch across spaces and InvalidRequest for a failed text.
        """
        check_one_space(self, other)
        if len(self) > len(other):  # the loop below goes over the shorter side
            return other.dot(self).T
        scores = np.zeros((len(self), len(other)), dtype=np.float32)
        vocabulary, places = np.unique(self.ids, return_inverse=True)
        found = np.searchsorted(vocabulary, other.ids)
        is_shared = vocabulary[np.minimum(found, len(vocabulary) - 1)] == other.ids if len(vocabulary) else found < 0
        found, weights = found[is_shared], other.weights[is_shared].astype(np.float64)
        owners = np.repeat(np.arange(len(other)), np.diff(other.offsets))[is_shared]
        for text in range(len(self)):
            own = slice(self.offsets[text], self.offsets[text + 1])
            looked_up = np.zeros(len(vocabulary))
            looked_up[places[own]] = self.weights[own]
            scores[text] = np.bincount(owners, weights=looked_up[found] * weights, minlength=len(other))
        return scores


def decode_sparse(
    reply: embed_pb2.EmbedResponse, spaces: list[Space | None], errors: dict[int, EmbedmuxError]
) -> SparseWeights:
    """The sparse part of a reply. Raises UnexpectedReply if it contradicts itself."""
    offsets = offsets_of(reply.sparse_lengths)
    num_bytes = 4 * int(offsets[-1])
    if len(reply.sparse_lengths) != len(spaces) or {len(reply.sparse_ids), len(reply.sparse_weights)} != {num_bytes}:
        raise UnexpectedReply(
            f"the reply to {len(spaces)} texts holds {len(reply.sparse_lengths)} counts of sparse weights, "
            f"{len(reply.sparse_ids)} bytes of ids and {len(reply.sparse_weights)} of weights; "
            f"the counts add up to {offsets[-1]}, of 4 bytes each"
        )
    ids = np.frombuffer(reply.sparse_ids, dtype="<u4").astype(np.uint32)
    return SparseWeights(
        ids, np.frombuffer(reply.sparse_weights, dtype="<f4").astype(np.float32), offsets, spaces, errors
    )


def join_sparse(
    parts: Sequence[SparseWeights], spaces: list[Space | None], errors: dict[int, EmbedmuxError]
) -> SparseWeights:
    """One record for consecutive parts; ``spaces`` and ``errors`` are the whole's."""
    return SparseWeights(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.weights for part in parts]),
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        spaces,
        errors,
    )
