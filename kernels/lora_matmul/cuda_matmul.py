"""The fused kernel of lora_matmul: one launch for base rows, low-rank rows and rows of merged adapters.

Each program owns one tile of rows and one piece of columns (``cuda_tiles.py`` has the words) and writes y once. Where
x Wᵀ and A x come from is the launcher's choice:

* *recompute* (no ``u``): A x is summed in registers beside x Wᵀ, from the same x, in every column tile anew. The loop
  is picked by the adapter's rank; ranks beyond the larger chunk take another pass over x. Base rows take a plain loop.
* *extend* (``u`` given): A x stands in memory, and the product goes on for ``rank`` more steps with the tile's B.
* *finish* (``u`` and ``product`` given): as extend, but x Wᵀ stands in memory too, except for merged adapters.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.lora_matmul import GATED
from embedmux.kernels.lora_matmul.cuda_tiles import (
    a_rows,
    activate,
    add_expanded,
    find_factors,
    find_tile,
    find_weight,
    load_b,
    load_inner,
    load_override,
    shrink,
)
from embedmux.kernels.lora_matmul.model import U_RANKS, blocks

ALIGNMENT_BYTES = 16  # of whatever the tables point to in the arena: the contract's promise for CUDA


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(total, x, w, K, BK: tl.constexpr, EVEN_K: tl.constexpr):  # type: ignore[no-untyped-def]
    for k in range(0, K, BK):
        chunk = load_inner(x, None, k, K, BK, EVEN_K)
        total = tl.dot(chunk, load_inner(w, None, k, K, BK, EVEN_K).T, total, input_precision="tf32x3")
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _multiply_both(total, u, x, w, a, has_a, K, BK: tl.constexpr, EVEN_K: tl.constexpr):  # type: ignore[no-untyped-def]
    for k in range(0, K, BK):
        chunk = load_inner(x, None, k, K, BK, EVEN_K)
        total = tl.dot(chunk, load_inner(w, None, k, K, BK, EVEN_K).T, total, input_precision="tf32x3")
        u = tl.dot(chunk, load_inner(a, has_a, k, K, BK, EVEN_K).T, u, input_precision="tf32x3")
    return total, u


@triton.jit  # type: ignore[untyped-decorator]
def _recompute(  # type: ignore[no-untyped-def]
    total, x, w, arena, factors, factors_up, width, columns,
    K, BM: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, RC: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """total + x Wᵀ and the first RC ranks, A x taken on the way."""
    CHUNK: tl.constexpr = 2 * RC if GATED else RC
    a, has_a = a_rows(arena, factors, factors_up, 0, K, RC, GATED)
    total, u = _multiply_both(total, tl.zeros((BM, CHUNK), tl.float32), x, w, a, has_a, K, BK, EVEN_K)
    return add_expanded(total, u, load_b(arena, factors, factors_up, 0, width, columns, RC, GATED))


@triton.jit(do_not_specialize=["num_segments"])  # type: ignore[untyped-decorator]
def _matmul(  # type: ignore[no-untyped-def]
    x, weight, bias, arena, adapters, overrides, columns, offsets, slots,
    u, product, y, K, num_segments,
    SLICES: tl.constexpr, STARTS: tl.constexpr, FIRSTS: tl.constexpr, U_RANKS: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, ALIGN: tl.constexpr, SEGMENTS: tl.constexpr,
    UNIFORM: tl.constexpr, EVEN: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, R0: tl.constexpr, R1: tl.constexpr,
):  # fmt: skip
    J: tl.constexpr = len(SLICES)
    N: tl.constexpr = STARTS[J]
    TILES: tl.constexpr = FIRSTS[J]
    BW: tl.constexpr = BN // 2 if GATED else BN
    row, end, slot = find_tile(tl.program_id(0) // TILES, offsets, slots, num_segments, SEGMENTS, BM)
    if row >= end:
        return

    tile = tl.program_id(0) % TILES
    first, start, width = 0, 0, SLICES[0]
    if UNIFORM:  # widths known when compiling spare registers
        first = tile // (TILES // J)
        start, tile = first * SLICES[0], tile % (TILES // J)
    elif not GATED:
        before = 0
        for j in tl.static_range(1, J):
            first = tl.where(tile >= FIRSTS[j], j, first)
            start = tl.where(tile >= FIRSTS[j], STARTS[j], start)
            width = tl.where(tile >= FIRSTS[j], SLICES[j], width)
            before = tl.where(tile >= FIRSTS[j], FIRSTS[j], before)
        tile -= before
    # Columns behind the slice repeat its last one, rows behind the segment its last one: read, but never stored.
    slice_column = tile * BW + tl.arange(0, BW)
    if not EVEN:
        slice_column = tl.minimum(slice_column, width - 1)
    up = tl.arange(0, BN) % 2 == 1
    if GATED:
        column = tl.interleave(slice_column, slice_column)
        base_column = column + tl.where(up, width, 0)
    else:
        column = slice_column
        base_column = start + column
    rows = row.to(tl.int64) + tl.minimum(tl.arange(0, BM), end - 1 - row)
    x_rows = (x + rows * K)[:, None]
    is_merged = False
    if overrides is not None:
        origin, is_merged = find_weight(weight, arena, overrides, slot, first, tl.cast(start, tl.int64) * K, J, ALIGN)
        if GATED:
            origin_up, is_merged_up = find_weight(
                weight, arena, overrides, slot, 1, tl.cast(width, tl.int64) * K, J, ALIGN
            )
            is_merged = is_merged | is_merged_up
            origin = tl.multiple_of(tl.where(up, origin_up, origin), [ALIGN])
        w_rows = (weight + (origin + column.to(tl.int64) * K))[:, None]
    else:
        w_rows = (weight + base_column.to(tl.int64) * K)[:, None]

    factors = find_factors(adapters, slot, first, J, ALIGN)
    factors_up, rank = factors, factors[2]
    if GATED:
        factors_up = find_factors(adapters, slot, 1, J, ALIGN)
        rank = tl.maximum(rank, factors_up[2])
    total = tl.zeros((BM, BN), tl.float32)
    if u is not None:
        if product is None or is_merged:
            total = _multiply(total, x_rows, w_rows, K, BK, EVEN_K)
        else:
            total = tl.load((product + rows * N)[:, None] + base_column[None, :]).to(tl.float32)
        chunk = tl.arange(0, 2 * R0 if GATED else R0)
        for done in range(0, tl.minimum(rank, U_RANKS), R0):
            if GATED:
                r = done + chunk % R0
                has_r = r < tl.where(chunk < R0, factors[2], factors_up[2])
                u_column = tl.where(chunk < R0, r, U_RANKS + r)
            else:
                r = done + chunk
                has_r = r < rank
                u_column = first * U_RANKS + r
            part = tl.load((u + rows * (J * U_RANKS))[:, None] + u_column[None, :], mask=has_r[None, :], other=0.0)
            total = add_expanded(total, part, load_b(arena, factors, factors_up, done, width, column, R0, GATED))
    elif rank == 0:
        total = _multiply(total, x_rows, w_rows, K, BK, EVEN_K)
    elif rank <= R0:
        total = _recompute(
            total, x_rows, w_rows, arena, factors, factors_up, width, column, K, BM, BK, EVEN_K, R0, GATED
        )
    else:
        total = _recompute(
            total, x_rows, w_rows, arena, factors, factors_up, width, column, K, BM, BK, EVEN_K, R1, GATED
        )
    # Ranks that neither u nor the loops above cover: another pass over x for each chunk.
    for done in range(U_RANKS if u is not None else R1, rank, R1):
        a, has_a = a_rows(arena, factors, factors_up, done, K, R1, GATED)
        part = shrink(x_rows, a, has_a, BM, 2 * R1 if GATED else R1, K, BK, EVEN_K)
        total = add_expanded(total, part, load_b(arena, factors, factors_up, done, width, column, R1, GATED))

    offset = tl.zeros((BN,), tl.float32)
    if bias is not None:
        offset = tl.load(bias + base_column).to(tl.float32)
    if overrides is not None:
        total *= load_override(columns, overrides, slot, first, 1, column, up, 1.0, J, GATED)[None, :]
        offset = load_override(columns, overrides, slot, first, 2, column, up, offset, J, GATED)
    total += offset[None, :]
    inside = (row + tl.arange(0, BM) < end)[:, None]
    if not EVEN:
        inside = inside & (tile * BW + tl.arange(0, BW) < width)[None, :]
    if GATED:
        gate, other = tl.split(tl.reshape(total, (BM, BW, 2)))
        total = activate(gate, ACTIVATION) * other
        target = y + rows * (N // 2)
    else:
        total = activate(total, ACTIVATION)
        target = y + (rows * N + start)
    tl.store(target[:, None] + slice_column[None, :], total.to(y.dtype.element_ty), mask=inside)


def multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arena: torch.Tensor, adapters: torch.Tensor,
    segment_offsets: torch.Tensor, segment_slots: torch.Tensor, slices: list[int], activation: str,
    overrides: torch.Tensor | None, columns: torch.Tensor | None,
    u: torch.Tensor | None = None, product: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """lora_matmul's y. u [T, J · U_RANKS] float32, as ``shrink`` gives it, or None; product = x Wᵀ [T, N] or None."""
    gated = activation in GATED
    meta = blocks(x.size(1), tuple(slices), x.element_size(), gated)
    block = meta["BN"] // 2 if gated else meta["BN"]
    firsts = (0, *accumulate(triton.cdiv(width, block) for width in (slices[:1] if gated else slices)))
    if gated:
        firsts = (0, firsts[1], firsts[1])
    num_segments = segment_slots.size(0)
    y = x.new_empty(x.size(0), weight.size(0) // (2 if gated else 1))
    # Segment g begins at tile offsets[g] // BM + g: the device needs no table, and the host no offsets.
    num_tiles = x.size(0) // meta["BM"] + num_segments if x.size(0) and num_segments else 0
    launch(
        _matmul, (num_tiles * firsts[-1],),
        x.contiguous(), weight.contiguous(), bias, arena, adapters.contiguous(),
        None if overrides is None else overrides.contiguous(), columns, segment_offsets, segment_slots,
        u, product, y, x.size(1), num_segments,
        SLICES=tuple(slices), STARTS=(0, *accumulate(slices)), FIRSTS=firsts, U_RANKS=U_RANKS,
        ACTIVATION=activation, GATED=gated, EVEN=all(width % block == 0 for width in slices),
        EVEN_K=x.size(1) % meta["BK"] == 0, UNIFORM=not gated and len(set(slices)) == 1,
        ALIGN=ALIGNMENT_BYTES // x.element_size(),
        SEGMENTS=max(16, triton.next_power_of_2(num_segments)), **meta,
    )  # fmt: skip
    return y
