"""Vectors in the encoding a reply or an index asks for; the codes are those of sentence-transformers 6.

Shape key: n vectors, D dimensions.

rows [n, D] float32, D at least 1 -> by encoding:

- "float32", "float16", "bfloat16": [n, D] of that dtype, rounded to nearest even; float32 is a copy.
- "uint8": [n, D], clip(floor((x - start) / step), 0, 255), where ranges [2, D] float32 holds the smallest (start) and
  the largest value of each dimension and step = (largest - smallest) / 255, or 1 where they are equal. In float32.
- "int8": [n, D], the uint8 code minus 128.
- "ubinary": [n, ceil(D / 8)] uint8, bit x > 0, the first dimension in the highest bit, zeros behind the last.
- "binary": the same bytes minus 128, as int8: to count bits, add 128 first.

Back from codes: code (int8: + 128) · step + start, the lower edge of the bucket. int8 and uint8 need ranges, from a
calibration kept with the space: codes of different ranges cannot be compared. The other encodings ignore ranges.

NaN stays NaN in the float encodings, has code 0 in uint8 (-128 in int8) and bit 0 in the binary ones; infinities take
the nearest code. Ranges that are not finite give code 0 or 255 and are not refused here.

``reference.py`` is the definition, ``csrc/quantize_rows.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.quantize_rows import reference

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "binary": torch.int8,
    "ubinary": torch.uint8,
}
SCHEMA = "(Tensor rows, str encoding, Tensor? ranges) -> Tensor"


def check(dimensions: int, dtype: torch.dtype, encoding: str, ranges: torch.Tensor | None) -> None:
    """The encoding of vectors of ``dimensions`` values of ``dtype``, and the ranges it needs."""
    if encoding not in DTYPES:
        checks.value_error("encoding", encoding, f"one of {', '.join(DTYPES)}")
    if encoding not in ("int8", "uint8"):
        return
    if ranges is None:
        raise ValueError(
            f"ranges must be given for {encoding}: calibrate first, [2, D] with the smallest and the largest value of "
            "each dimension"
        )
    if ranges.shape != (2, dimensions):
        checks.shape_error("ranges", ranges, f"[2, D] with D = {dimensions}")
    if ranges.dtype != dtype:
        checks.dtype_error("ranges", ranges, f"{dtype} as the vectors")


def codes_width(dimensions: int, encoding: str) -> int:
    """Codes of one vector."""
    return (dimensions + 7) // 8 if encoding in ("binary", "ubinary") else dimensions


def check_rows(rows: torch.Tensor, encoding: str, ranges: torch.Tensor | None) -> None:
    """What can be told from shapes and dtypes alone."""
    if rows.dim() != 2 or rows.size(1) == 0:
        checks.shape_error("rows", rows, "[n, D] with D at least 1")
    check(rows.size(1), rows.dtype, encoding, ranges)


def _reference(rows: torch.Tensor, encoding: str, ranges: torch.Tensor | None) -> torch.Tensor:
    check_rows(rows, encoding, ranges)
    return reference.quantize_rows(rows, encoding, ranges)


def _fake(rows: torch.Tensor, encoding: str, ranges: torch.Tensor | None) -> torch.Tensor:
    check_rows(rows, encoding, ranges)
    return rows.new_empty(rows.size(0), codes_width(rows.size(1), encoding), dtype=DTYPES[encoding])


quantize_rows = define("quantize_rows", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
