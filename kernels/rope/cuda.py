"""rope in Triton: one launch for q and k; a program turns a few heads of one token, all with the same angles."""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.rope import check

TILE = 1024  # values a program holds, at least one head
VALUES_PER_WARP = 512


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    source, target, weight, cosine, sine, token, tile, token_stride, head_stride, eps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    head = (tile * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    column = tl.arange(0, BLOCK_HALF)
    in_half = column < HALF
    inside = (head < HEADS)[:, None] & in_half[None, :]
    start = source + token * token_stride + head[:, None] * head_stride + column[None, :]
    first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32)
    end = target + (token * HEADS + head[:, None]) * SIZE + column[None, :]
    if weight is not None:
        squares = tl.sum(first * first + second * second, 1)
    if SIZE > 2 * HALF:
        last = 2 * HALF + tl.arange(0, BLOCK_REST)
        in_rest = (head < HEADS)[:, None] & (last < SIZE)[None, :]
        rest_start = source + token * token_stride + head[:, None] * head_stride + last[None, :]
        rest = tl.load(rest_start, mask=in_rest, other=0.0).to(tl.float32)
        if weight is not None:
            squares += tl.sum(rest * rest, 1)
    if weight is not None:
        scale = tl.rsqrt(squares / SIZE + eps)[:, None]
        first = first * scale * tl.load(weight + column, mask=in_half, other=0.0).to(tl.float32)[None, :]
        second = second * scale * tl.load(weight + HALF + column, mask=in_half, other=0.0).to(tl.float32)[None, :]
    tl.store(end, (first * cosine - second * sine).to(target.dtype.element_ty), mask=inside)
    tl.store(end + HALF, (second * cosine + first * sine).to(target.dtype.element_ty), mask=inside)
    if SIZE > 2 * HALF:
        if weight is not None:
            rest = rest * scale * tl.load(weight + last, mask=last < SIZE, other=0.0).to(tl.float32)[None, :]
        rest_end = target + (token * HEADS + head[:, None]) * SIZE + last[None, :]
        tl.store(rest_end, rest.to(target.dtype.element_ty), mask=in_rest)


@triton.jit(do_not_specialize=["known"])  # type: ignore[untyped-decorator]
def rope_kernel(  # type: ignore[no-untyped-def]
    q, k, q_out, k_out, positions, cos, sin, q_weight, k_weight,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, known, eps,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    column = tl.arange(0, BLOCK_HALF)
    # A position out of range reads the first row: the contract leaves its result undefined.
    position = tl.load(positions + token)
    position = tl.where((position >= 0) & (position < known), position, 0)
    cosine = tl.load(cos + position * HALF + column, mask=column < HALF, other=0.0)[None, :]
    sine = tl.load(sin + position * HALF + column, mask=column < HALF, other=0.0)[None, :]
    q_tiles: tl.constexpr = (Q_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    if tile < q_tiles:
        _turn(q, q_out, q_weight, cosine, sine, token, tile, q_token_stride, q_head_stride, eps,
              Q_HEADS, SIZE, HALF, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip
    else:
        _turn(k, k_out, k_weight, cosine, sine, token, tile - q_tiles, k_token_stride, k_head_stride, eps,
              K_HEADS, SIZE, HALF, BLOCK_HEADS, BLOCK_HALF, BLOCK_REST)  # fmt: skip


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the contract in ``kernels/rope/__init__.py``."""
    check(q, k, positions, cos, sin, q_weight, k_weight, eps)
    q, k = (heads if heads.stride(2) == 1 else heads.contiguous() for heads in (q, k))
    tokens, q_heads, size = q.shape
    k_heads, half = k.size(1), cos.size(1)
    q_out, k_out = q.new_empty(q.size()), k.new_empty(k.size())
    block_half = triton.next_power_of_2(half)
    block_heads = min(triton.next_power_of_2(k_heads), max(1, TILE // (2 * block_half)))
    tiles = triton.cdiv(q_heads, block_heads) + triton.cdiv(k_heads, block_heads)
    q_weight, k_weight = (None if weight is None else weight.contiguous() for weight in (q_weight, k_weight))
    launch(
        rope_kernel, (tokens, tiles),
        q, k, q_out, k_out, positions.contiguous(), cos.contiguous(), sin.contiguous(), q_weight, k_weight,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), cos.size(0), eps,
        Q_HEADS=q_heads, K_HEADS=k_heads, SIZE=size, HALF=half, BLOCK_HEADS=block_heads, BLOCK_HALF=block_half,
        BLOCK_REST=triton.next_power_of_2(max(1, size - 2 * half)),
        num_warps=max(1, 2 * block_heads * block_half // VALUES_PER_WARP),
    )  # fmt: skip
    return q_out, k_out
