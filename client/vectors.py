"""Vectors as numpy arrays, with everything a reply says about them; decoding is pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedmux.client.errors import UnexpectedReply, first_error, text_error
from embedmux.client.ragged import Rows, chosen_texts
from embedmux.client.similarity import check_comparable, similarity
from embedmux.client.sparse import SparseWeights, decode_sparse, join_sparse
from embedmux.client.texts import EmbedOptions, ErrorPolicy, asked_outputs, check_policy
from embedmux.client.token_vectors import TokenVectors, decode_tokens, join_tokens
from embedmux.client.wire import ENCODINGS, decode_rows
from embedmux.proto import embed_pb2
from embedmux.server.errors import EmbedmuxError, InvalidRequest
from embedmux.server.records import Encoding, Space


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """One row for every text, in the caller's order.

    vectors [n, dimensions] float32 (float32, bfloat16), float16, int8 or uint8; binary and ubinary are
    [n, ceil(dimensions / 8)] int8 and uint8, one bit a dimension, most significant first. Rows of texts in ``errors``
    are zero and their ``spaces`` entry is None. num_tokens and num_tokens_original [n] int64 count prompt and special
    tokens too; they differ where the text was truncated. Without the output "dense" a row has no values and
    ``dimensions`` is 0. ``sparse`` and ``tokens`` are there if these outputs were asked for; ``rendered`` is the exact
    text the model read of each text, and empty unless ``echo`` was set.
    """

    vectors: NDArray[np.generic]
    encoding: Encoding
    dimensions: int
    spaces: list[Space | None]
    num_tokens: NDArray[np.int64]
    num_tokens_original: NDArray[np.int64]
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)
    sparse: SparseWeights | None = None
    tokens: TokenVectors | None = None
    rendered: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.spaces)

    def __getitem__(self, rows: Rows) -> Embeddings:
        """The chosen rows, in the chosen order; an int gives one row. Masks and index arrays work as in numpy."""
        chosen = chosen_texts(len(self), rows)
        return Embeddings(
            vectors=self.vectors[chosen],
            encoding=self.encoding,
            dimensions=self.dimensions,
            spaces=[self.spaces[row] for row in chosen],
            num_tokens=self.num_tokens[chosen],
            num_tokens_original=self.num_tokens_original[chosen],
            errors={new: self.errors[row] for new, row in enumerate(chosen.tolist()) if row in self.errors},
            sparse=None if self.sparse is None else self.sparse[chosen],
            tokens=None if self.tokens is None else self.tokens[chosen],
            rendered=[self.rendered[row] for row in chosen] if self.rendered else [],
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
        if not self.dimensions:
            raise InvalidRequest('these embeddings have no dense vectors; name "dense" among their outputs')
        return similarity(self.vectors, other.vectors, encoding=self.encoding, dimensions=self.dimensions)


def decode(reply: embed_pb2.EmbedResponse, num_texts: int, options: EmbedOptions | None = None) -> Embeddings:
    """The embeddings of a reply to ``num_texts`` texts that were sent with ``options``.

    Raises UnexpectedReply if the reply contradicts itself or leaves out what was asked for.
    """
    options = options or {}
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
    outputs = asked_outputs(options)
    num_rendered = num_texts if options.get("echo") else 0
    if ("dense" in outputs) != bool(reply.dimensions) or len(reply.rendered) != num_rendered:
        raise UnexpectedReply(
            f"the reply has {reply.dimensions} dimensions and {len(reply.rendered)} rendered texts; asked for were "
            f"{' and '.join(outputs)}, and {num_rendered} rendered texts"
        )
    errors = {error.index: text_error(error) for error in reply.errors}
    beyond = [i for row, i in enumerate(reply.space_index) if row not in errors and i >= len(reply.spaces)]
    if beyond or any(index >= num_texts for index in errors):
        raise UnexpectedReply(
            f"the reply to {num_texts} texts and {len(reply.spaces)} spaces names spaces {beyond} and failed texts "
            f"{sorted(errors)}"
        )
    known = [Space(space.id, space.calibration) for space in reply.spaces]
    spaces = [None if row in errors else known[index] for row, index in enumerate(reply.space_index)]
    return Embeddings(
        vectors=decode_rows(reply.vectors, encoding, reply.row_bytes, num_texts),
        encoding=encoding,
        dimensions=reply.dimensions,
        spaces=spaces,
        num_tokens=np.array(reply.num_tokens, dtype=np.int64),
        num_tokens_original=np.array(reply.num_tokens_original, dtype=np.int64),
        errors=errors,
        sparse=decode_sparse(reply, spaces, errors) if "sparse" in outputs else None,
        tokens=decode_tokens(reply, encoding, spaces, errors) if "tokens" in outputs else None,
        rendered=list(reply.rendered),
    )


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """One record for consecutive parts of one call."""
    if len(parts) == 1:
        return parts[0]
    errors: dict[int, EmbedmuxError] = {}
    start = 0
    for part in parts:
        errors |= {start + index: error for index, error in part.errors.items()}
        start += len(part)
    spaces = [space for part in parts for space in part.spaces]
    sparse = [part.sparse for part in parts if part.sparse is not None]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Embeddings(
        vectors=np.concatenate([part.vectors for part in parts]),
        encoding=parts[0].encoding,
        dimensions=parts[0].dimensions,
        spaces=spaces,
        num_tokens=np.concatenate([part.num_tokens for part in parts]),
        num_tokens_original=np.concatenate([part.num_tokens_original for part in parts]),
        errors=errors,
        sparse=join_sparse(sparse, spaces, errors) if sparse else None,
        tokens=join_tokens(tokens, spaces, errors) if tokens else None,
        rendered=[text for part in parts for text in part.rendered],
    )


def by_policy(embeddings: Embeddings, errors: ErrorPolicy) -> Embeddings:
    """The embeddings, unless a text failed and the caller wants that raised."""
    check_policy(errors)
    return embeddings.raise_for_errors() if errors == "raise" else embeddings


def empty(options: EmbedOptions) -> Embeddings:
    """The embeddings of no texts; without a reply the full sizes are unknown, so ``dimensions`` may be 0."""
    encoding, outputs = Encoding(options.get("encoding", "float32")), asked_outputs(options)
    dimensions = (options.get("dimensions") or 0) if "dense" in outputs else 0
    none, nothing = np.zeros(0, dtype=np.int64), embed_pb2.EmbedResponse()
    return Embeddings(
        decode_rows(b"", encoding, encoding.row_bytes(dimensions), 0),
        encoding,
        dimensions,
        [],
        none,
        none,
        sparse=decode_sparse(nothing, [], {}) if "sparse" in outputs else None,
        tokens=decode_tokens(nothing, encoding, [], {}) if "tokens" in outputs else None,
    )
