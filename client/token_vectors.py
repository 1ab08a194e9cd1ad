"""Token vectors: for every text one vector a token, and MaxSim, the late interaction of two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedmux.client.errors import UnexpectedReply
from embedmux.client.ragged import Rows, chosen_texts, offsets_of, take
from embedmux.client.similarity import check_comparable
from embedmux.client.wire import decode_rows
from embedmux.proto import embed_pb2
from embedmux.server.errors import EmbedmuxError
from embedmux.server.records import Encoding, Space

BITS = (Encoding.BINARY, Encoding.UBINARY)


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """Texts end to end: text i has the rows vectors[offsets[i]:offsets[i + 1]].

    vectors [t, w] as ``Embeddings.vectors`` in the same encoding; offsets [n + 1] int64. A failed text has no rows, and
    its ``spaces`` entry is None.
    """

    vectors: NDArray[np.generic]
    offsets: NDArray[np.int64]
    encoding: Encoding
    dimensions: int
    spaces: list[Space | None]
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.spaces)

    def __getitem__(self, rows: Rows) -> TokenVectors:
        """The chosen texts, in the chosen order; an int gives one. Masks and index arrays work as in numpy."""
        chosen = chosen_texts(len(self), rows)
        positions, offsets = take(self.offsets, chosen)
        return TokenVectors(
            self.vectors[positions],
            offsets,
            self.encoding,
            self.dimensions,
            [self.spaces[text] for text in chosen],
            {new: self.errors[text] for new, text in enumerate(chosen.tolist()) if text in self.errors},
        )

    def rows_of(self, text: int) -> NDArray[np.generic]:
        """[k, w] vectors of one text."""
        return self[text].vectors

    def maxsim(self, other: TokenVectors) -> NDArray[np.float32]:
        """Scores [len(self), len(other)]: for each token here the greatest dot product with a token there, added up.

        These texts are the queries. Dot products are of the values as they are: of codes for int8 and uint8 (less 128),
        of signs over dimensions for binary and ubinary. A document without rows scores minus infinity. Some models
        divide by the number of query rows, ``np.diff(queries.offsets)``. Raises SpaceMismatch across spaces and
        InvalidRequest across encodings or for a failed text. Source: ColBERT, Khattab and Zaharia 2020.
        """
        check_comparable(self, other)
        queries, documents = values(self), values(other).T
        scores = np.full((len(self), len(other)), -np.inf, dtype=np.float32)
        has_rows = np.diff(other.offsets) > 0
        starts = other.offsets[:-1][has_rows]
        if len(starts):
            for text in range(len(self)):  # one query at a time: all pairs of tokens at once could take gigabytes
                dots = queries[self.offsets[text] : self.offsets[text + 1]] @ documents
                scores[text, has_rows] = np.maximum.reduceat(dots, starts, axis=1).sum(axis=0, dtype=np.float64)
        return scores / np.float32(self.dimensions) if self.encoding in BITS else scores


def values(tokens: TokenVectors) -> NDArray[np.float32] | NDArray[np.float64]:
    """The rows as floats [t, dimensions] whose dot products mean something."""
    if tokens.encoding in BITS:
        # binary differs from ubinary in one bit of a byte, on both sides of a product.
        return np.unpackbits(tokens.vectors.view(np.uint8), axis=1, count=tokens.dimensions).astype(np.float32) * 2 - 1
    if tokens.encoding.is_calibrated:
        # float64 is exact for codes, and unlike integers it has BLAS.
        return tokens.vectors.astype(np.float64) - (128 if tokens.encoding is Encoding.UINT8 else 0)
    return tokens.vectors.astype(np.float32)


def decode_tokens(
    reply: embed_pb2.EmbedResponse, encoding: Encoding, spaces: list[Space | None], errors: dict[int, EmbedmuxError]
) -> TokenVectors:
    """The token vectors of a reply. Raises UnexpectedReply if it contradicts itself."""
    offsets = offsets_of(reply.token_rows)
    row_bytes = encoding.row_bytes(reply.token_dimensions)
    if len(reply.token_rows) != len(spaces) or len(reply.token_vectors) != int(offsets[-1]) * row_bytes:
        raise UnexpectedReply(
            f"the reply to {len(spaces)} texts holds {len(reply.token_rows)} counts of token vectors and "
            f"{len(reply.token_vectors)} bytes of them; the counts add up to {offsets[-1]} rows, and "
            f"{reply.token_dimensions} dimensions as {encoding.value} take {row_bytes} bytes a row"
        )
    vectors = decode_rows(reply.token_vectors, encoding, row_bytes, int(offsets[-1]))
    return TokenVectors(vectors, offsets, encoding, reply.token_dimensions, spaces, errors)


def join_tokens(
    parts: Sequence[TokenVectors], spaces: list[Space | None], errors: dict[int, EmbedmuxError]
) -> TokenVectors:
    """One record for consecutive parts; ``spaces`` and ``errors`` are the whole's."""
    return TokenVectors(
        np.concatenate([part.vectors for part in parts]),
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        parts[0].encoding,
        parts[0].dimensions,
        spaces,
        errors,
    )
