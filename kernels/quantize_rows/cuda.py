"""quantize_rows on the GPU: one program for a block of columns of a row; ``store_codes`` also ends pool_encode."""

import torch
import triton
import triton.language as tl

from embedmux.kernels import checks
from embedmux.kernels.launch import launch
from embedmux.kernels.quantize_rows import DTYPES, check_rows, codes_width

MAX_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def store_codes(  # type: ignore[no-untyped-def]
    values, columns, first, dimensions, codes, ranges, ENCODING: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the codes of values [BLOCK], which stand at columns = first + 0 .. BLOCK - 1 of the row at ``codes``.

    ENCODING is one of DTYPES; ``first`` is a multiple of 8, and values behind ``dimensions`` are zero.
    """
    is_there = columns < dimensions
    if ENCODING == "binary" or ENCODING == "ubinary":
        # The first dimension stands in the highest bit. Minus 128 gives the signed form.
        bits = tl.reshape(tl.where(values > 0, 1, 0), (BLOCK // 8, 8))
        codes_of_bytes = tl.sum(bits << (7 - tl.arange(0, 8))[None, :], 1)
        if ENCODING == "binary":
            codes_of_bytes -= 128
        places = first // 8 + tl.arange(0, BLOCK // 8)
        tl.store(codes + places, codes_of_bytes.to(codes.dtype.element_ty), mask=places < (dimensions + 7) // 8)
    elif ENCODING == "int8" or ENCODING == "uint8":
        start = tl.load(ranges + columns, mask=is_there, other=0.0)
        step = tl.div_rn(tl.load(ranges + dimensions + columns, mask=is_there, other=0.0) - start, 255.0)
        level = tl.div_rn(values - start, tl.where(step == 0, 1.0, step))
        # Comparisons, not min and max: NaN has code 0. From 0 to 255 the conversion to int is floor.
        low = tl.where(level > 0, level, 0.0)
        code = tl.where(low < 255, low, 255.0).to(tl.int32)
        if ENCODING == "int8":
            code -= 128
        tl.store(codes + columns, code.to(codes.dtype.element_ty), mask=is_there)
    else:
        tl.store(codes + columns, values.to(codes.dtype.element_ty), mask=is_there)


@triton.jit  # type: ignore[untyped-decorator]
def quantize_kernel(  # type: ignore[no-untyped-def]
    rows, codes, ranges, dimensions, width, ENCODING: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    values = tl.load(rows + row * dimensions + columns, mask=columns < dimensions, other=0.0)
    store_codes(values, columns, first, dimensions, codes + row * width, ranges, ENCODING, BLOCK)


def quantize_rows(rows: torch.Tensor, encoding: str, ranges: torch.Tensor | None) -> torch.Tensor:
    """As the contract says; rows float32."""
    check_rows(rows, encoding, ranges)
    if rows.dtype != torch.float32:
        checks.dtype_error("rows", rows, "torch.float32")
    count, dimensions = rows.shape
    width = codes_width(dimensions, encoding)
    codes = rows.new_empty(count, width, dtype=DTYPES[encoding])
    block = min(MAX_BLOCK, max(8, triton.next_power_of_2(dimensions)))
    used_ranges = ranges.contiguous() if ranges is not None and encoding in ("int8", "uint8") else None
    grid = (count, triton.cdiv(dimensions, block))
    launch(
        quantize_kernel, grid, rows.contiguous(), codes, used_ranges, dimensions, width, ENCODING=encoding,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    return codes
