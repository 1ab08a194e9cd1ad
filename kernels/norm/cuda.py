"""The norms in Triton: a few whole rows a program, memory read and written once.

pre_norm uses the same kernel. Rows per program and warps follow the width alone, so a row is summed in the same order
in every batch: about 16 values a thread, and widths up to 8192 stay in registers.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.norm import check

TILE = 2048  # values a program holds, at least one row
VALUES_PER_WARP = 512


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, out, total, rows, x_stride, residual_stride, eps,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_WIDTH)
    in_row = column < WIDTH
    inside = (row < rows)[:, None] & in_row[None, :]
    values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        source = residual + row[:, None] * residual_stride + column[None, :]
        values += tl.load(source, mask=inside, other=0.0).to(tl.float32)
    place = row[:, None] * WIDTH + column[None, :]
    if total is not None:
        tl.store(total + place, values.to(total.dtype.element_ty), mask=inside)
    if CENTRED:
        mean = tl.sum(values, 1) / WIDTH
        values = tl.where(in_row[None, :], values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)
    values = values * scale[:, None] * tl.load(weight + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        values += tl.load(bias + column, mask=in_row, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, values.to(out.dtype.element_ty), mask=inside)


def norm_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    centred: bool,
    wants_sum: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The norm [T, H] of each row, and x + residual rounded to x's dtype if it is wanted."""
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    out = x.new_empty(rows, width)
    total = x.new_empty(rows, width) if wants_sum else None
    block = triton.next_power_of_2(width)
    block_rows = max(1, TILE // block)
    launch(
        norm_kernel, (triton.cdiv(rows, block_rows),),
        x, residual, weight.contiguous(), None if bias is None else bias.contiguous(), out, total,
        rows, x.stride(0), 0 if residual is None else residual.stride(0), eps,
        WIDTH=width, BLOCK_ROWS=block_rows, BLOCK_WIDTH=block, CENTRED=centred,
        num_warps=min(16, max(1, block_rows * block // VALUES_PER_WARP)),
    )  # fmt: skip
    return out, total


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """See the contract in ``kernels/norm/__init__.py``."""
    check(x, residual, weight, bias, eps)
    return norm_rows(x, residual, weight, bias, eps, centred=True, wants_sum=False)[0]
