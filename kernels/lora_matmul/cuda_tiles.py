"""What the kernels of lora_matmul share: which rows a program has, and how it reads factors and multiplies by them.

Words: a *tile* is a block of BM rows of one segment, so all of it has one adapter. A *piece* is what one column tile
covers: one slice, or for gated activations both halves with gate and up columns in turn, so that one product and one
accumulator serve both. ``first`` is the number of the piece's first slice. Ranks go through in chunks of RC; a gated
piece stacks two of them, gate before up.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def find_tile(tile, offsets, slots, num_segments, SEGMENTS: tl.constexpr, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first row, end of the segment, slot) of a tile; a tile without rows begins at or behind the end.

    Segment g owns the numbers from offsets[g] // BM + g up to the next segment's first: never fewer than its rows
    need, at most one more. So a program counts the segments that begin at or before it, and no scan is needed.
    """
    index = tl.arange(0, SEGMENTS)
    begin = tl.load(offsets + index, mask=index < num_segments, other=0)
    segment = tl.sum(((begin // BM + index <= tile) & (index < num_segments)).to(tl.int32)) - 1
    begin = tl.load(offsets + segment)
    row = begin + (tile - begin // BM - segment) * BM
    return row, tl.load(offsets + segment + 1), tl.load(slots + segment)


@triton.jit  # type: ignore[untyped-decorator]
def load_inner(rows, inside, k, K, BK: tl.constexpr, EVEN_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """[R, BK] of a row-major matrix [., K], column k on; ``rows`` [R, 1] point to rows, ``inside`` (or None) masks."""
    column = k + tl.arange(0, BK)[None, :]
    if inside is None:
        block = tl.load(rows + column) if EVEN_K else tl.load(rows + column, mask=column < K, other=0.0)
    elif EVEN_K:
        block = tl.load(rows + column, mask=inside, other=0.0)
    else:
        block = tl.load(rows + column, mask=inside & (column < K), other=0.0)
    return block


@triton.jit  # type: ignore[untyped-decorator]
def find_factors(adapters, slot, first, J: tl.constexpr, ALIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """(offset of A, offset of B, rank) of a slice; slot -1 has rank 0."""
    entry, is_adapter = adapters + (slot * J + first) * 3, slot >= 0
    a = tl.multiple_of(tl.load(entry, mask=is_adapter, other=0), ALIGN)
    b = tl.multiple_of(tl.load(entry + 1, mask=is_adapter, other=0), ALIGN)
    return a, b, tl.load(entry + 2, mask=is_adapter, other=0).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def find_override(overrides, slot, first, field: tl.constexpr, J: tl.constexpr):  # type: ignore[no-untyped-def]
    """What stands in a slice's field (0 weight, 1 scale, 2 bias); -1 means: as the base model has it."""
    return tl.load(overrides + (slot * J + first) * 3 + field, mask=slot >= 0, other=-1)


@triton.jit  # type: ignore[untyped-decorator]
def find_weight(  # type: ignore[no-untyped-def]
    weight, arena, overrides, slot, first, base, J: tl.constexpr, ALIGN: tl.constexpr
):
    """(offset from weight to the slice's first row, whether it is a merged one in the arena)."""
    own = find_override(overrides, slot, first, 0, J)
    distance = (arena.to(tl.int64) - weight.to(tl.int64)) // (weight.dtype.element_ty.primitive_bitwidth // 8)
    return tl.multiple_of(tl.where(own >= 0, distance + own, base), ALIGN), own >= 0


@triton.jit  # type: ignore[untyped-decorator]
def load_override(  # type: ignore[no-untyped-def]
    columns, overrides, slot, first, field: tl.constexpr, column, up, default, J: tl.constexpr, GATED: tl.constexpr
):
    """A piece's columns [BN] of the scale or the bias, or ``default`` where the adapter has none."""
    own = find_override(overrides, slot, first, field, J) + tl.zeros_like(column)
    if GATED:
        own = tl.where(up, find_override(overrides, slot, 1, field, J), own)
    return tl.where(own >= 0, tl.load(columns + (own + column), mask=own >= 0, other=0.0), default)


@triton.jit  # type: ignore[untyped-decorator]
def a_rows(arena, factors, factors_up, done, K, RC: tl.constexpr, GATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers [chunk, 1] to the rows of A from rank ``done`` on, and which of them exist."""
    if GATED:
        index = tl.arange(0, 2 * RC)
        r = done + index % RC
        offset = tl.where(index < RC, factors[0], factors_up[0])
        inside = r < tl.where(index < RC, factors[2], factors_up[2])
    else:
        r = done + tl.arange(0, RC)
        offset = factors[0]
        inside = r < factors[2]
    return (arena + (offset + r.to(tl.int64) * K))[:, None], inside[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def load_b(  # type: ignore[no-untyped-def]
    arena, factors, factors_up, done, width, columns, RC: tl.constexpr, GATED: tl.constexpr
):
    """[chunk, BN] of B from rank ``done`` on; a gated piece's halves have zeros in each other's columns.

    ``columns`` [BN] of the slice, in a gated piece each twice. Halves that are joined instead would be read once, but
    Triton 3.6 fails to compile what a product makes of them.
    """
    if GATED:
        index = tl.arange(0, 2 * RC)
        is_up = (index >= RC)[:, None]
        r = done + index % RC
        rows = arena + (tl.where(index >= RC, factors_up[1], factors[1]) + r.to(tl.int64) * width)
        inside = (r < tl.where(index >= RC, factors_up[2], factors[2]))[:, None]
        is_own = is_up == (tl.arange(0, columns.shape[0]) % 2 == 1)[None, :]
        b = tl.load(rows[:, None] + columns[None, :], mask=inside & is_own, other=0.0)
    else:
        r = done + tl.arange(0, RC)
        rows = arena + (factors[1] + r.to(tl.int64) * width)
        b = tl.load(rows[:, None] + columns[None, :], mask=(r < factors[2])[:, None], other=0.0)
    return b


@triton.jit
def add_expanded(total, u, b):  # type: ignore[no-untyped-def]
    """total + u B, with u [BM, chunk] float32; for half-width B as a sum of two, which keeps 16 bits of u or more."""
    if b.dtype == tl.float32:
        total = tl.dot(u, b, total, input_precision="tf32x3")
    else:
        high = u.to(b.dtype)
        low = (u - high.to(tl.float32)).to(b.dtype)
        total = tl.dot(low, b, tl.dot(high, b, total))
    return total


@triton.jit  # type: ignore[untyped-decorator]
def shrink(  # type: ignore[no-untyped-def]
    x, a, has_a, BM: tl.constexpr, CHUNK: tl.constexpr, K, BK: tl.constexpr, EVEN_K: tl.constexpr
):
    """A x for a tile of rows and a chunk of ranks, [BM, CHUNK] float32."""
    u = tl.zeros((BM, CHUNK), tl.float32)
    for k in range(0, K, BK):
        chunk = load_inner(x, None, k, K, BK, EVEN_K)
        u = tl.dot(chunk, load_inner(a, has_a, k, K, BK, EVEN_K).T, u, input_precision="tf32x3")
    return u


@triton.jit  # type: ignore[untyped-decorator]
def activate(y, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation by name, in float32; a gated one's name stands for what happens to the gate."""
    if ACTIVATION == "gelu" or ACTIVATION == "geglu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh" or ACTIVATION == "geglu_tanh":
        # 1 + tanh(z) = 2 / (1 + exp(-2 z)), with z = sqrt(2 / pi) (y + 0.044715 y³)
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
    elif ACTIVATION == "silu" or ACTIVATION == "swiglu":
        y = y / (1.0 + tl.exp(-y))
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
    return y
