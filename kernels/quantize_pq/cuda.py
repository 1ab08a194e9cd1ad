"""quantize_pq on NVIDIA GPUs: a program takes a block of rows through one byte of their codes."""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.quantize_pq import check

BLOCK_ROWS = 128


@triton.jit  # type: ignore[untyped-decorator]
def nearest(rows, centroids, row, is_row, row_stride, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """The code of each row's part, whose values start at ``rows``; centroids [16, width]."""
    code = tl.arange(0, 16)
    distances = tl.zeros((row.shape[0], 16), tl.float32)
    for d in range(width):
        values = tl.load(rows + row * row_stride + d, mask=is_row, other=0.0)
        centres = tl.load(centroids + code * width + d)
        differences = values[:, None] - centres[None, :]
        distances += differences * differences
    distances = tl.where(distances == distances, distances, float("inf"))  # NaN is not itself
    return tl.argmin(distances, axis=1, tie_break_left=True)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def quantize_kernel(  # type: ignore[no-untyped-def]
    rows,
    codebooks,
    codes,
    num_rows,
    row_stride,
    columns: tl.constexpr,
    width: tl.constexpr,
    block_rows: tl.constexpr,
):
    """codes [n, columns]: byte ``program_id(1)`` of a block of rows."""
    column = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    is_row = row < num_rows
    values = rows + column * 2 * width
    centroids = codebooks + column * 2 * 16 * width
    low = nearest(values, centroids, row, is_row, row_stride, width)
    high = nearest(values + width, centroids + 16 * width, row, is_row, row_stride, width)
    tl.store(codes + row * columns + column, (low + 16 * high).to(tl.uint8), mask=is_row)


def quantize_pq(rows: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """See the contract."""
    check(rows, codebooks)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    columns, width = codebooks.size(0) // 2, codebooks.size(2)
    codes = rows.new_empty(rows.size(0), columns, dtype=torch.uint8)
    launch(
        quantize_kernel, (triton.cdiv(rows.size(0), BLOCK_ROWS), columns), rows, codebooks.contiguous(), codes,
        rows.size(0), rows.stride(0), columns, width, BLOCK_ROWS, num_warps=4,
    )  # fmt: skip
    return codes
