"""pool_encode on the GPU: one program a sequence holds its vector in registers from the first token to the codes.

A tile of TOKENS rows is read at once and added to TOKENS running sums, token i to sum i % TOKENS, which are added in
the end: the order depends on the token's place in its own sequence and on the model's shapes only. Weight and bias of
the final norm act on each column alone, so they are applied once, to the mean of the normalised rows.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels import checks
from embedmux.kernels.launch import launch
from embedmux.kernels.pool_encode import Pair, check, empty_codes
from embedmux.kernels.quantize_rows.cuda import store_codes

MAX_WIDTH = 8192
LARGEST_FLOAT = tl.constexpr(3.4028234663852886e38)


@triton.jit  # type: ignore[untyped-decorator]
def normed_tile(values, is_there, width, eps, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """values [TOKENS, BLOCK], zero where not ``is_there``, after the norm without its weight and bias."""
    if NORM == "layer":
        mean = tl.sum(values, 1) / width
        values = tl.where(is_there, values - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(values * values, 1) / width + eps)
    return tl.where(is_there, values * scale[:, None], 0.0)


@triton.jit(do_not_specialize=["sequence_count", "dimensions", "codes_width"])  # type: ignore[untyped-decorator]
def pool_encode_kernel(  # type: ignore[no-untyped-def]
    hidden, residual, weight, bias, eps, offsets, sequences, sequence_count, codes, finite, ranges,
    width, dimensions, codes_width, hidden_stride, residual_stride,
    NORM: tl.constexpr, POOLING: tl.constexpr, NORMALIZE: tl.constexpr, ENCODING: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sequence = row if sequences is None else tl.load(sequences + row).to(tl.int64)
    is_known = (sequence >= 0) & (sequence < sequence_count)
    begin = tl.load(offsets + sequence, mask=is_known, other=0)
    end = tl.load(offsets + sequence + 1, mask=is_known, other=0)
    if POOLING == "cls":
        end = tl.minimum(end, begin + 1)
    if POOLING == "last":
        begin = tl.maximum(begin, end - 1)

    columns = tl.arange(0, BLOCK)
    # A norm needs the whole row; without one only the columns that are kept are read.
    columns_read = dimensions if NORM == "none" else width
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    for start in range(begin, end, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        is_there = (tokens < end)[:, None] & (columns < columns_read)[None, :]
        places = tokens.to(tl.int64)[:, None]
        values = tl.load(hidden + places * hidden_stride + columns[None, :], mask=is_there, other=0.0).to(tl.float32)
        if residual is not None:
            added = tl.load(residual + places * residual_stride + columns[None, :], mask=is_there, other=0.0)
            values += added.to(tl.float32)
        if NORM != "none":
            values = normed_tile(values, is_there, width, eps, NORM)
        total += values

    is_kept = columns < dimensions
    vector = tl.div_rn(tl.sum(total, 0), tl.maximum(end - begin, 1).to(tl.float32))
    if weight is not None:
        vector *= tl.load(weight + columns, mask=is_kept, other=0.0).to(tl.float32)
    if bias is not None:
        vector += tl.load(bias + columns, mask=is_kept, other=0.0).to(tl.float32)
    vector = tl.where(is_kept & (end > begin), vector, 0.0)
    if NORMALIZE:
        length = tl.sqrt_rn(tl.sum(vector * vector, 0))
        # Not a maximum: a length that is not a number must stay so.
        vector = tl.div_rn(vector, tl.where(length < 1e-12, 1e-12, length))
    if finite is not None:
        strange = tl.where(tl.abs(vector) <= LARGEST_FLOAT, 0, 1)  # NaN compares as false
        tl.store(finite + row, tl.max(strange, 0) == 0)
    store_codes(vector, columns, 0, dimensions, codes + row * codes_width, ranges, ENCODING, BLOCK)


def with_plain_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Values of a row side by side; the rows may stand apart."""
    return tensor if tensor.stride(1) == 1 or tensor.size(1) == 1 else tensor.contiguous()


def tile_shape(columns: int, pooling: str) -> tuple[int, int, int]:
    """(TOKENS, BLOCK, warps) for rows of so many columns: about 32 values of a tile a thread.

    Whatever dimensions are asked for, so that one compiled kernel serves them all.
    """
    block = max(8, triton.next_power_of_2(columns))
    warps = min(16, max(4, block // 256))
    per_row = max(1, block // (32 * warps))
    return (min(8, max(1, 32 // per_row)) if pooling == "mean" else 1), block, warps


def launch_pooling(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, normalize: bool, encoding: str, ranges: torch.Tensor | None, codes: torch.Tensor,
    finite: torch.Tensor | None,
) -> None:  # fmt: skip
    """Fills codes and finite; arguments as ``check`` lets them pass."""
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        checks.dtype_error("hidden", hidden, "torch.float32, torch.bfloat16 or torch.float16")
    if hidden.size(1) > MAX_WIDTH:
        checks.shape_error("hidden", hidden, f"[T, H] with H at most {MAX_WIDTH} on CUDA")
    rows = with_plain_rows(hidden)
    added = None if residual is None else with_plain_rows(residual)
    tokens, block, warps = tile_shape(hidden.size(1), pooling)
    launch(
        pool_encode_kernel, (codes.size(0),), rows, added,
        None if norm_weight is None else norm_weight.contiguous(),
        None if norm_bias is None else norm_bias.contiguous(),
        float(eps), offsets.contiguous(), None if sequences is None else sequences.contiguous(), offsets.size(0) - 1,
        codes, finite, ranges.contiguous() if ranges is not None and encoding in ("int8", "uint8") else None,
        hidden.size(1), dimensions, codes.size(1), rows.stride(0), 0 if added is None else added.stride(0),
        NORM=norm, POOLING=pooling, NORMALIZE=normalize, ENCODING=encoding, TOKENS=tokens, BLOCK=block,
        num_warps=warps,
    )  # fmt: skip


def pool_encode(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, normalize: bool, encoding: str, ranges: torch.Tensor | None,
) -> Pair:  # fmt: skip
    """As the contract says; H at most 8192."""
    check(
        hidden, residual, norm_weight, norm_bias, eps, norm, offsets, sequences, pooling, dimensions, encoding, ranges
    )
    codes, finite = empty_codes(hidden, offsets, sequences, dimensions, encoding)
    launch_pooling(
        hidden, residual, norm_weight, norm_bias, eps, norm, offsets, sequences, pooling, dimensions, normalize,
        encoding, ranges, codes, finite,
    )  # fmt: skip
    return codes, finite
