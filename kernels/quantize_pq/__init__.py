"""Rows as product-quantised codes: for each part of a row the nearest of its 16 centroids, two codes a byte.

Shape key: n rows, D dimensions, M subquantizers (even).

rows [n, D] float32, codebooks [M, 16, D / M] float32 -> codes [n, M / 2] uint8, contiguous. Byte j holds the code of
part 2j in its low nibble and that of part 2j + 1 in its high one. Nearest is by squared distance, summed in float32 in
the order of the dimensions; of equal distances the lower code wins, and a distance that is NaN counts as infinite, so
that a part without any number has code 0. A row's codes depend on that row alone.

Source: product quantisation, Jegou, Douze and Schmid 2011. ``reference.py`` is the definition, ``csrc/quantize_pq.cpp``
the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.quantize_pq import reference

CENTROIDS = 16
SCHEMA = "(Tensor rows, Tensor codebooks) -> Tensor"


def check(rows: torch.Tensor, codebooks: torch.Tensor) -> None:
    if rows.dim() != 2:
        checks.shape_error("rows", rows, "[n, D]")
    if codebooks.dim() != 3 or codebooks.size(1) != CENTROIDS:
        checks.shape_error("codebooks", codebooks, "[M, 16, D / M]")
    parts, _, width = codebooks.shape
    if parts == 0 or parts % 2 != 0 or width == 0 or parts * width != rows.size(1):
        checks.shape_error("codebooks", codebooks, f"[M, 16, D / M] with even M and D = {rows.size(1)}")
    if rows.dtype not in (torch.float32, torch.float64):
        checks.dtype_error("rows", rows, "torch.float32")
    if codebooks.dtype != rows.dtype:
        checks.dtype_error("codebooks", codebooks, f"{rows.dtype} as rows")


def _reference(rows: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    check(rows, codebooks)
    return reference.quantize_pq(rows, codebooks)


def _fake(rows: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    check(rows, codebooks)
    return rows.new_empty(rows.size(0), codebooks.size(0) // 2, dtype=torch.uint8)


quantize_pq = define("quantize_pq", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
