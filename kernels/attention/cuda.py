"""Packed attention in Triton: flash attention over tiles of query rows, one launch for all sequences and heads.

A program holds BM query rows of one sequence and walks over blocks of BN keys with an online softmax (Dao 2022,
FlashAttention-2). Which sequence and which rows it reads from the offsets, on the device: the grid is an upper bound
made of shapes, and programs beyond the last tile return. Query heads that share keys are packed into the rows of one
tile, up to eight: K and V are then read once for all of them, and short texts fill a tile better.

Tiles are counted from a sequence's own start and key blocks from its prefix's, in sizes that D, the dtype and the
grouping fix; a block may hold keys of both. Hence a row's bits do not depend on what it is packed with, nor on where
its sequence is cut into prefix and tail.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from embedmux.kernels.attention import check
from embedmux.kernels.launch import launch

LOG2_E = 1.4426950408889634
MAX_PACK = 8
NO_WINDOW = 1 << 30
LOOK: tl.constexpr = tl.constexpr(128)  # sequences that a program looks at in one step of its search
NO_KEY: tl.constexpr = tl.constexpr(-1e30)  # largest score before the first key; finite, so no inf - inf arises


# The interpreter multiplies the bits of bfloat16 as whole numbers.
WIDENS: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b, sums):  # type: ignore[no-untyped-def]
    """sums + a @ b in float32."""
    if WIDENS:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="tf32x3")


@triton.jit  # type: ignore[untyped-decorator]
def find_tile(offsets, n, tile, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(sequence, tile within it) of the tile-th tile of ROWS rows of the batch; the sequence is n behind the last."""
    sequence = 0
    before = 0  # tiles of the sequences looked at so far
    first = 0  # tiles of the sequences that end at or before `tile`
    for start in range(0, n, LOOK):
        index = start + tl.arange(0, LOOK)
        inside = index < n
        begin = tl.load(offsets + index, mask=inside, other=0)
        end = tl.load(offsets + index + 1, mask=inside, other=0)
        tiles = (end - begin + ROWS - 1) // ROWS
        last = before + tl.cumsum(tiles, 0)
        passed = inside & (last <= tile)
        sequence += tl.sum(passed.to(tl.int32), 0)
        first = tl.maximum(first, tl.max(tl.where(passed, last, 0), 0))
        before += tl.sum(tiles, 0)
    return sequence, tile - first


@triton.jit  # type: ignore[untyped-decorator]
def walk_keys(  # type: ignore[no-untyped-def]
    sums, total, largest, q, k, v, k_stride, v_stride, prefix_k, prefix_v, prefix_k_stride, prefix_v_stride, before,
    place, begin, end, count, window, scale, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PREFIXED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys begin .. end - 1 of `count`, of which the first `before` are the prefix's.

    `place` are the queries' positions among them.
    """
    depth = tl.arange(0, BD)
    for start in range(begin, end, BN):
        key = start + tl.arange(0, BN)
        rows = (key - before).to(tl.int64)[:, None]
        key_rows = k + rows * k_stride
        value_rows = v + rows * v_stride
        if PREFIXED:
            shared = (key < before)[:, None]
            key_rows = tl.where(shared, prefix_k + key.to(tl.int64)[:, None] * prefix_k_stride, key_rows)
            value_rows = tl.where(shared, prefix_v + key.to(tl.int64)[:, None] * prefix_v_stride, value_rows)
        keep = ((key < count) | (not MASKED))[:, None] & (depth < D)[None, :]
        keys = tl.load(key_rows + depth[None, :], mask=keep, other=0.0)
        scores = multiply(q, tl.trans(keys), tl.zeros([BM, BN], dtype=tl.float32))
        if MASKED:
            visible = (key < count)[None, :]
            if CAUSAL:
                visible = visible & (key[None, :] <= place[:, None])
            if WINDOWED:
                ahead = key[None, :] - place[:, None]
                visible = visible & (ahead <= window) & (ahead >= -window)
            scores = tl.where(visible, scores, float("-inf"))
        shift = tl.maximum(largest, tl.max(scores, 1) * scale)
        decay = tl.exp2(largest - shift)
        weights = tl.exp2(scores * scale - shift[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = tl.load(value_rows + depth[None, :], mask=keep, other=0.0)
        sums = multiply(weights.to(values.dtype), values, sums * decay[:, None])
        largest = shift
    return sums, total, largest


@triton.jit  # type: ignore[untyped-decorator]
def walk_part(  # type: ignore[no-untyped-def]
    sums, total, largest, q, k, v, k_stride, v_stride, prefix_k, prefix_v, prefix_k_stride, prefix_v_stride, before,
    place, low, high, count, window, scale, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PREFIXED: tl.constexpr,
):  # fmt: skip
    """The keys that queries at positions low .. high may see: whole blocks without masks, then the rest.

    count is the number of keys there are; with a window every block is masked, there are few.
    """
    first = 0
    last = count
    if CAUSAL:
        last = tl.minimum(last, high + 1)
    whole = last
    if CAUSAL:
        whole = tl.minimum(whole, low + 1)
    whole = whole // BN * BN
    if WINDOWED:
        first = tl.maximum(low - window, 0) // BN * BN
        last = tl.minimum(last, high + window + 1)
        whole = first
    else:
        sums, total, largest = walk_keys(
            sums, total, largest, q, k, v, k_stride, v_stride, prefix_k, prefix_v, prefix_k_stride, prefix_v_stride,
            before, place, first, whole, count, window, scale, D, BD, BM, BN, CAUSAL, WINDOWED, PREFIXED, False,
        )  # fmt: skip
    return walk_keys(
        sums, total, largest, q, k, v, k_stride, v_stride, prefix_k, prefix_v, prefix_k_stride, prefix_v_stride,
        before, place, whole, last, count, window, scale, D, BD, BM, BN, CAUSAL, WINDOWED, PREFIXED, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "window"])  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]
    q, k, v, out, offsets, prefix_k, prefix_v, prefix_offsets, prefix_of, num_keys, asked, n, window, scale,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, prefix_k_token, prefix_k_head, prefix_v_token,
    prefix_v_head, D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PREFIXED: tl.constexpr, LIMITED: tl.constexpr,
    ASKED: tl.constexpr,
):  # fmt: skip
    """Strides in elements; a tile holds BM / PACK positions of PACK query heads. With ASKED only one of a sequence's
    tiles is computed, whole."""
    sequence, tile = find_tile(offsets, n, tl.program_id(0), BM // PACK)
    if sequence >= n:
        return
    begin = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - begin
    if ASKED:  # noqa: SIM102 - known at compilation: without it nothing is loaded
        if (tl.load(asked + sequence) - begin) // (BM // PACK) != tile:
            return
    low = tile * (BM // PACK)
    row = tl.arange(0, BM)
    place = low + row // PACK
    high = tl.minimum(low + BM // PACK, length) - 1
    first_head = tl.program_id(1) * PACK
    head = first_head + row % PACK
    key_head = (first_head // GROUP).to(tl.int64)
    depth = tl.arange(0, BD)
    keep = (place < length)[:, None] & (depth < D)[None, :]
    token = (begin + place).to(tl.int64)
    queries = tl.load(
        q + token[:, None] * q_token + head.to(tl.int64)[:, None] * q_head + depth[None, :], mask=keep, other=0.0
    )

    sums = tl.zeros([BM, BD], dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    largest = tl.full([BM], NO_KEY, dtype=tl.float32)
    before = 0
    shared_k = prefix_k
    shared_v = prefix_v
    if PREFIXED:
        prefix = tl.load(prefix_of + sequence)
        start = tl.load(prefix_offsets + tl.maximum(prefix, 0))
        before = tl.where(prefix >= 0, tl.load(prefix_offsets + prefix + 1) - start, 0)
        shared_k = prefix_k + start.to(tl.int64) * prefix_k_token + key_head * prefix_k_head
        shared_v = prefix_v + start.to(tl.int64) * prefix_v_token + key_head * prefix_v_head
    own = length
    if LIMITED:
        own = tl.load(num_keys + sequence)
    sums, total, largest = walk_part(
        sums, total, largest, queries,
        k + begin.to(tl.int64) * k_token + key_head * k_head, v + begin.to(tl.int64) * v_token + key_head * v_head,
        k_token, v_token, shared_k, shared_v, prefix_k_token, prefix_v_token, before,
        place + before, low + before, high + before, before + own, window, scale,
        D, BD, BM, BN, CAUSAL, WINDOWED, PREFIXED,
    )  # fmt: skip
    total = tl.where(place < length, total, 1.0)  # a row behind the end may have seen no key
    tl.store(
        out + token[:, None] * out_token + head.to(tl.int64)[:, None] * D + depth[None, :],
        (sums / total[:, None]).to(out.dtype.element_ty),
        mask=keep,
    )


def tile_sizes(depth: int, dtype: torch.dtype) -> dict[str, int]:
    """Rows, keys, warps and stages for a head size rounded up to a power of two; none spills on sm_80 .. sm_120."""
    wide = dtype == torch.float32  # tf32x3 keeps three operands where bfloat16 keeps one
    if depth <= 32:
        rows, keys, warps, stages = (64, 32, 4, 2) if wide else (64, 64, 4, 3)
    elif depth <= 64:
        rows, keys, warps, stages = (32, 16, 4, 2) if wide else (64, 64, 4, 3)
    elif depth <= 128:
        rows, keys, warps, stages = (16, 32, 4, 2) if wide else (64, 32, 4, 3)
    else:
        rows, keys, warps, stages = (16, 16, 8, 1) if wide else (64, 32, 8, 2)
    return {"BM": rows, "BN": keys, "num_warps": warps, "num_stages": stages}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
    prefix_k: torch.Tensor | None = None,
    prefix_v: torch.Tensor | None = None,
    prefix_offsets: torch.Tensor | None = None,
    prefix_of: torch.Tensor | None = None,
    num_keys: torch.Tensor | None = None,
    asked: torch.Tensor | None = None,
) -> torch.Tensor:
    """The op on CUDA; see the contract."""
    check(q, k, v, offsets, window, scale, (prefix_k, prefix_v, prefix_offsets, prefix_of), num_keys, asked)
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    for name, tensor in (("q", q), ("k", k), ("v", v), ("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        if tensor is not None and tensor.stride(2) != 1 and tensor.numel() > 0:
            raise ValueError(f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}")
    integers = {
        "offsets": offsets, "prefix_offsets": prefix_offsets, "prefix_of": prefix_of, "num_keys": num_keys,
        "asked": asked,
    }  # fmt: skip
    for name, tensor in integers.items():
        if tensor is not None and tensor.stride(0) != 1 and tensor.numel() > 1:
            raise ValueError(f"{name} must be contiguous, got stride {tensor.stride(0)}")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows, heads, depth = q.shape
    n, group = offsets.size(0) - 1, heads // k.size(1)
    padded = triton.next_power_of_2(depth)
    pack = min(MAX_PACK, group & -group)  # the largest power of two that divides the group
    tiles = tile_sizes(padded, q.dtype)
    prefix_strides = (
        (0, 0, 0, 0) if prefix_k is None or prefix_v is None else (*prefix_k.stride()[:2], *prefix_v.stride()[:2])
    )
    launch(
        attend, (triton.cdiv(rows, tiles["BM"] // pack) + n if rows else 0, heads // pack),
        q, k, v, out, offsets, prefix_k, prefix_v, prefix_offsets, prefix_of, num_keys, asked, n,
        min(window, NO_WINDOW),
        scale * LOG2_E, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], out.stride(0), *prefix_strides,
        D=depth, BD=padded, GROUP=group, PACK=pack, CAUSAL=causal, WINDOWED=window >= 0,
        PREFIXED=prefix_of is not None, LIMITED=num_keys is not None, ASKED=asked is not None, **tiles,
    )  # fmt: skip
    return out
