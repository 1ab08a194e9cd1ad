"""Vectors as numpy arrays, with everything a reply says about them; decoding is pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedmux.client.errors import UnexpectedReply, first_error, text_error
from embedmux.client.similarity import check_comparable, similarity
from embedmux.client.texts import EmbedOptions, ErrorPolicy, check_policy
from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import EmbedmuxError
from embedmux.server.records import Encoding, Space

# How a value lies on the wire, and what the caller gets; numpy has no bfloat16, so its bits are widened to float32.
WIRE_DTYPES = {
    Encoding.FLOAT32: "<f4",
    Encoding.FLOAT16: "<f2",
    Encoding.BFLOAT16: "<u2",
    Encoding.INT8: "i1",
    Encoding.UINT8: "u1",
    Encoding.BINARY: "i1",
    Encoding.UBINARY: "u1",
}
ENCODINGS = {types_pb2.Encoding.Value(f"ENCODING_{member.name}"): member for member in Encoding}


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """One row for every text, in the caller's order.

    vectors [n, dimensions] float32 (float32, bfloat16), float16, int8 or uint8; binary and ubinary are
    [n, ceil(dimensions / 8)] int8 and uint8, one bit a dimension, most significant first. Rows of texts in ``errors``
    are zero and their ``spaces`` entry is None. num_tokens and num_tokens_original [n] int64 count prompt and special
    tokens too; they differ where the text was truncated.
    """

    vectors: NDArray[np.generic]
    encoding: Encoding
    dimensions: int
    spaces: list[Space | None]
    num_tokens: NDArray[np.int64]
    num_tokens_original: NDArray[np.int64]
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.spaces)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[np.generic]) -> Embeddings:
        """The chosen rows, in the chosen order; an int gives one row. Masks and index arrays work as in numpy."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        return Embeddings(
            vectors=self.vectors[chosen],
            encoding=self.encoding,
            dimensions=self.dimensions,
            spaces=[self.spaces[row] for row in chosen],
            num_tokens=self.num_tokens[chosen],
            num_tokens_original=self.num_tokens_original[chosen],
            errors={new: self.errors[row] for new, row in enumerate(chosen.tolist()) if row in self.errors},
        )

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """[n] bool: whether the model read fewer tokens than the text has."""
        return self.num_tokens < self.num_tokens_original

    def raise_for_errors(self) -> Embeddings:
        """These embeddings, or the first failed text's exception with the text's index before its message."""
        if self.errors:
            raise first_error(self.errors, num_texts=len(self))
        return self

    def similarity(self, other: Embeddings) -> NDArray[np.float32] | NDArray[np.int32]:
        """How alike every text here is to every text of ``other``, [len(self), len(other)]; higher is closer.

        float encodings: cosine, float32. int8, uint8: dot product of the codes, uint8 less 128, int32 and exact.
        binary, ubinary: cosine of the sign vectors, which is 1 - 2 * Hamming distance / dimensions, float32.
        Raises SpaceMismatch across spaces or calibrations, and InvalidRequest across encodings or for a failed text.
        """
        check_comparable(self, other)
        return similarity(self.vectors, other.vectors, encoding=self.encoding, dimensions=self.dimensions)


def decode(reply: embed_pb2.EmbedResponse, num_texts: int) -> Embeddings:
    """The embeddings of a reply to ``num_texts`` texts. Raises UnexpectedReply if the reply contradicts itself."""
    if reply.encoding not in ENCODINGS:
        raise UnexpectedReply(f"the reply has encoding {reply.encoding}, this client knows 1 to {len(ENCODINGS)}")
    encoding = ENCODINGS[reply.encoding]
    row_bytes = encoding.row_bytes(reply.dimensions)
    counts = {len(reply.num_tokens), len(reply.num_tokens_original), len(reply.space_index)}
    if counts != {num_texts} or reply.row_bytes != row_bytes or len(reply.vectors) != num_texts * row_bytes:
        raise UnexpectedReply(
            f"the reply to {num_texts} texts holds {len(reply.num_tokens)} token counts, {len(reply.space_index)} "
            f"space indices and {len(reply.vectors)} bytes; {reply.dimensions} dimensions as {encoding.value} "
            f"take {row_bytes} bytes a row"
        )
    errors = {error.index: text_error(error) for error in reply.errors}
    beyond = [i for row, i in enumerate(reply.space_index) if row not in errors and i >= len(reply.spaces)]
    if beyond or any(index >= num_texts for index in errors):
        raise UnexpectedReply(
            f"the reply to {num_texts} texts and {len(reply.spaces)} spaces names spaces {beyond} and failed texts "
            f"{sorted(errors)}"
        )
    spaces = [Space(space.id, space.calibration) for space in reply.spaces]
    return Embeddings(
        vectors=decode_rows(reply.vectors, encoding, reply.row_bytes),
        encoding=encoding,
        dimensions=reply.dimensions,
        spaces=[None if row in errors else spaces[index] for row, index in enumerate(reply.space_index)],
        num_tokens=np.array(reply.num_tokens, dtype=np.int64),
        num_tokens_original=np.array(reply.num_tokens_original, dtype=np.int64),
        errors=errors,
    )


def decode_rows(data: bytes, encoding: Encoding, row_bytes: int) -> NDArray[np.generic]:
    """[n, values] of the rows in ``data``: writable, native byte order."""
    flat = np.frombuffer(data, dtype=WIRE_DTYPES[encoding])
    width = row_bytes // flat.itemsize
    wire = flat.reshape(len(flat) // width if width else 0, width)
    if encoding is Encoding.BFLOAT16:
        return (wire.astype(np.uint32) << 16).view(np.float32)
    return wire.astype(wire.dtype.newbyteorder("="))


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """One record for consecutive parts of one call."""
    if len(parts) == 1:
        return parts[0]
    errors: dict[int, EmbedmuxError] = {}
    start = 0
    for part in parts:
        errors |= {start + index: error for index, error in part.errors.items()}
        start += len(part)
    return Embeddings(
        vectors=np.concatenate([part.vectors for part in parts]),
        encoding=parts[0].encoding,
        dimensions=parts[0].dimensions,
        spaces=[space for part in parts for space in part.spaces],
        num_tokens=np.concatenate([part.num_tokens for part in parts]),
        num_tokens_original=np.concatenate([part.num_tokens_original for part in parts]),
        errors=errors,
    )


def by_policy(embeddings: Embeddings, errors: ErrorPolicy) -> Embeddings:
    """The embeddings, unless a text failed and the caller wants that raised."""
    check_policy(errors)
    return embeddings.raise_for_errors() if errors == "raise" else embeddings


def empty(options: EmbedOptions) -> Embeddings:
    """The embeddings of no texts; without a reply the full size is unknown, so ``dimensions`` may be 0."""
    encoding, dimensions = Encoding(options.get("encoding", "float32")), options.get("dimensions") or 0
    none = np.zeros(0, dtype=np.int64)
    return Embeddings(decode_rows(b"", encoding, encoding.row_bytes(dimensions)), encoding, dimensions, [], none, none)
