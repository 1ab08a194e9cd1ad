"""What one row of an output file holds, whatever the format."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def row_width(encoding: Encoding, dimensions: int) -> int:
    """Values of one row; bits come eight in a value."""
    return encoding.row_bytes(dimensions) // VALUE_BYTES[VALUE_KINDS[encoding]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a file, one for every text: [n, width] vectors, zero where ``status`` is not 0.

    ``status`` is the gRPC status number of a text, 0 for one that has a vector.
    """

    ids: list[str]
    vectors: NDArray[np.generic]
    status: list[int]
    spaces: list[Space | None]
    num_tokens: list[int]
    num_tokens_original: list[int]
