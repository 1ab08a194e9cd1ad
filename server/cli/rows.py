"""What one row of an output file holds, whatever the format."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedmux.client.sparse import SparseWeights
from embedmux.client.texts import DENSE_ONLY
from embedmux.client.token_vectors import TokenVectors
from embedmux.server.records import Encoding, Space

# Encoding -> how safetensors calls one stored value.
VALUE_KINDS = {
    Encoding.FLOAT32: "F32",
    Encoding.FLOAT16: "F16",
    Encoding.BFLOAT16: "BF16",
    Encoding.INT8: "I8",
    Encoding.UINT8: "U8",
    Encoding.BINARY: "I8",
    Encoding.UBINARY: "U8",
}
VALUE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


VALUE_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.float32, "I8": np.int8, "U8": np.uint8}


@dataclass(frozen=True, slots=True)
class Layout:
    """What every row of a file holds: some of dense, sparse and tokens; ``dimensions`` is 0 without dense vectors."""

    encoding: Encoding
    dimensions: int
    outputs: tuple[str, ...] = DENSE_ONLY

    @property
    def kind(self) -> str:
        """What safetensors calls a value of dense and token vectors."""
        return VALUE_KINDS[self.encoding]

    @property
    def width(self) -> int:
        """Values of a dense vector; bits come eight in a value."""
        return row_width(self.encoding, self.dimensions)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a file, one for every text: [n, width] vectors, zero where ``status`` is not 0.

    ``status`` is the gRPC status number of a text, 0 for one that was served. ``sparse`` and ``tokens`` have n texts,
    if the layout has these outputs; failed texts are empty in them.
    """

    ids: list[str]
    vectors: NDArray[np.generic]
    status: list[int]
    spaces: list[Space | None]
    num_tokens: list[int]
    num_tokens_original: list[int]
    sparse: SparseWeights | None = None
    tokens: TokenVectors | None = None


def row_width(encoding: Encoding, dimensions: int) -> int:
    """Values of one vector; bits come eight in a value."""
    return encoding.row_bytes(dimensions) // VALUE_BYTES[VALUE_KINDS[encoding]]
