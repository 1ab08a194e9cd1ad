"""u = A x for every row and slice, in a launch of its own or on the way out of the norm before.

u [T, J · U_RANKS] float32 has column j · U_RANKS + r for rank r of slice j; columns behind an adapter's rank and rows
of the base model are undefined. All slices of a linear are taken together, so x is read once; ranks go through in
chunks of RC for as long as the adapter has any.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.lora_matmul.cuda_matmul import ALIGNMENT_BYTES
from embedmux.kernels.lora_matmul.cuda_tiles import find_tile, load_inner, shrink
from embedmux.kernels.lora_matmul.model import SHRINK_RANKS, U_RANKS


@triton.jit  # type: ignore[untyped-decorator]
def _find_all(adapters, slot, J: tl.constexpr, SPAN: tl.constexpr, RC: tl.constexpr, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """(slice, offset of A, rank) for every row of the stacked chunks of all slices, [SPAN]."""
    piece = tl.arange(0, SPAN) // RC
    entry, exists = adapters + (slot * J + piece) * 3, piece < tl.where(slot >= 0, J, 0)
    a = tl.multiple_of(tl.load(entry, mask=exists, other=0), [ALIGN])
    return piece, a, tl.load(entry + 2, mask=exists, other=0).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _store(u, part, rows, row_inside, piece, r, has_r, J: tl.constexpr, U_RANKS: tl.constexpr):  # type: ignore[no-untyped-def]
    target = (u + rows * (J * U_RANKS))[:, None] + (piece * U_RANKS + r)[None, :]
    tl.store(target, part, mask=row_inside[:, None] & has_r[None, :])


@triton.jit(do_not_specialize=["num_segments"])  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x, arena, adapters, offsets, slots, u, K, num_segments,
    J: tl.constexpr, SPAN: tl.constexpr, U_RANKS: tl.constexpr, ALIGN: tl.constexpr,
    SEGMENTS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, RC: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    row, end, slot = find_tile(tl.program_id(0), offsets, slots, num_segments, SEGMENTS, BM)
    if row >= end:
        return
    piece, a, rank = _find_all(adapters, slot, J, SPAN, RC, ALIGN)
    row_inside = row + tl.arange(0, BM) < end
    rows = row.to(tl.int64) + tl.minimum(tl.arange(0, BM), end - 1 - row)
    for done in range(0, tl.minimum(tl.max(rank), U_RANKS), RC):
        r = done + tl.arange(0, SPAN) % RC
        a_rows = (arena + (a + r.to(tl.int64) * K))[:, None]
        part = shrink((x + rows * K)[:, None], a_rows, (r < rank)[:, None], BM, SPAN, K, BK, EVEN_K)
        _store(u, part, rows, row_inside, piece, r, r < rank, J, U_RANKS)


@triton.jit  # type: ignore[untyped-decorator]
def _load_sum(x, residual, rows, k, K, BK: tl.constexpr, EVEN_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """x + residual in float32, [BM, BK]; zero behind K."""
    total = load_inner((x + rows * K)[:, None], None, k, K, BK, EVEN_K).to(tl.float32)
    if residual is not None:
        total += load_inner((residual + rows * K)[:, None], None, k, K, BK, EVEN_K).to(tl.float32)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _load_normal(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, mean, scale, rows, k,
    K, BK: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """The norm's result, rounded as it is written, [BM, BK]."""
    column = k + tl.arange(0, BK)
    total = (_load_sum(x, residual, rows, k, K, BK, EVEN_K) - mean[:, None]) * scale[:, None]
    total *= tl.load(weight + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
    return total.to(x.dtype.element_ty)


@triton.jit(do_not_specialize=["num_segments"])  # type: ignore[untyped-decorator]
def _norm_shrink(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, eps, arena, adapters, offsets, slots,
    y, u, K, num_segments,
    CENTRED: tl.constexpr, J: tl.constexpr, SPAN: tl.constexpr, U_RANKS: tl.constexpr, ALIGN: tl.constexpr,
    SEGMENTS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, RC: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    row, end, slot = find_tile(tl.program_id(0), offsets, slots, num_segments, SEGMENTS, BM)
    if row >= end:
        return
    row_inside = row + tl.arange(0, BM) < end
    rows = row.to(tl.int64) + tl.minimum(tl.arange(0, BM), end - 1 - row)
    mean, square = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    if CENTRED:
        for k in range(0, K, BK):
            mean += tl.sum(_load_sum(x, residual, rows, k, K, BK, EVEN_K), 1)
        mean /= K
    for k in range(0, K, BK):
        distance = tl.where(
            (k + tl.arange(0, BK) < K)[None, :], _load_sum(x, residual, rows, k, K, BK, EVEN_K) - mean[:, None], 0.0
        )
        square += tl.sum(distance * distance, 1)
    scale = tl.rsqrt(square / K + eps)

    target = (y + rows * K)[:, None] + tl.arange(0, BK)[None, :]
    piece, a, rank = _find_all(adapters, slot, J, SPAN, RC, ALIGN)
    for k in range(0, K, BK):
        normal = _load_normal(x, residual, weight, bias, mean, scale, rows, k, K, BK, EVEN_K)
        tl.store(target + k, normal, mask=row_inside[:, None] & (k + tl.arange(0, BK) < K)[None, :])
    # The tile is in the first-level cache by now: normalising it again costs less than keeping K values a row.
    for done in range(0, tl.minimum(tl.max(rank), U_RANKS), RC):
        r = done + tl.arange(0, SPAN) % RC
        a_rows = (arena + (a + r.to(tl.int64) * K))[:, None]
        part = tl.zeros((BM, SPAN), tl.float32)
        for k in range(0, K, BK):
            normal = _load_normal(x, residual, weight, bias, mean, scale, rows, k, K, BK, EVEN_K)
            factor = load_inner(a_rows, (r < rank)[:, None], k, K, BK, EVEN_K)
            part = tl.dot(normal, factor.T, part, input_precision="tf32x3")
        _store(u, part, rows, row_inside, piece, r, r < rank, J, U_RANKS)


def _meta(x: torch.Tensor, adapters: torch.Tensor, segment_slots: torch.Tensor, block: int) -> dict[str, int]:
    num_slices, chunk = adapters.size(1), SHRINK_RANKS
    return {
        "J": num_slices, "SPAN": chunk * triton.next_power_of_2(num_slices), "RC": chunk,
        "U_RANKS": U_RANKS, "ALIGN": ALIGNMENT_BYTES // x.element_size(),
        "EVEN_K": x.size(1) % block == 0, "BK": block,
        "SEGMENTS": max(16, triton.next_power_of_2(segment_slots.size(0))),
    }  # fmt: skip


def _tiles(x: torch.Tensor, segment_slots: torch.Tensor, block: int) -> int:
    num_segments = segment_slots.size(0)
    return x.size(0) // block + num_segments if x.size(0) and num_segments else 0


def shrink_rows(
    x: torch.Tensor, arena: torch.Tensor, adapters: torch.Tensor, segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """u for lora_matmul's x [T, K] and tables: the first U_RANKS ranks of each adapter."""
    u = x.new_empty(x.size(0), adapters.size(1) * U_RANKS, dtype=torch.float32)
    launch(
        _shrink, (_tiles(x, segment_slots, 32),),
        x.contiguous(), arena, adapters.contiguous(), segment_offsets, segment_slots, u, x.size(1),
        segment_slots.size(0), **_meta(x, adapters, segment_slots, 128 // x.element_size()), BM=32,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return u


def norm_shrink(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float,
    arena: torch.Tensor, adapters: torch.Tensor, segment_offsets: torch.Tensor, segment_slots: torch.Tensor,
    *, centred: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(y, u): y = norm(x + residual) · weight + bias as the norm ops define it, u = A y for the next linear.

    x and residual [T, K]; ``centred`` means LayerNorm, else RMSNorm. With u, that linear
    needs no shrink of its own.
    """
    y = x.new_empty(x.size())
    u = x.new_empty(x.size(0), adapters.size(1) * U_RANKS, dtype=torch.float32)
    launch(
        _norm_shrink, (_tiles(x, segment_slots, 16),),
        x.contiguous(), None if residual is None else residual.contiguous(), weight, bias, eps,
        arena, adapters.contiguous(), segment_offsets, segment_slots, y, u, x.size(1), segment_slots.size(0),
        CENTRED=centred, **_meta(x, adapters, segment_slots, 64), BM=16, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y, u
