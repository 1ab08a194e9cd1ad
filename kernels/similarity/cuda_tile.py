"""Scores of a tile of rows with a tile of queries on tensor cores: what similarity, similarity_topk and rescore share.

All three call ``score_tile`` with the same block sizes and warps for a kind and a dtype, whatever the number of queries
and rows: so a pair has the same bits in each of them. A tile's columns are queries, most of which are padding where
only one query is asked; that costs tensor cores time they have while the rows stream in from memory.

How each kind becomes matrix products:

- dot: as it is; float32 as three tf32 products (Markidis et al. 2018, as Triton's tf32x3).
- int8: int8 products, summed exactly in int32.
- float_int8: a code is exact in bfloat16, and a float32 query is exactly the sum of three bfloat16 numbers (8 bits of
  mantissa each): three products whose terms are exact, summed in float32.
- float_binary: the same with signs for codes. Eight products, one for each bit of a byte, take the place of unpacking:
  a sum does not care for the order of dimensions, so the query is read with a stride of 8.

hamming is no product: bits are counted four bytes at a time, by arithmetic that compilers know for a population count.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from embedmux.kernels import checks

WIDEST = tl.constexpr(3.38e38)  # above, rounding to bfloat16 may give infinity


@dataclass(frozen=True, slots=True)
class Tile:
    """Block sizes: rows, queries, and what is read of a row at once (dimensions, or bytes of packed bits).

    max_registers: None leaves their number to the assembler, which may spill a few to fit one more block.
    """

    rows: int
    queries: int
    depth: int
    num_warps: int = 8
    num_stages: int = 3
    max_registers: int | None = None


def tile_of(kind: str, dtype: torch.dtype) -> Tile:
    """The tile for a kind and the queries' dtype. With more, topk's keys would not fit into registers beside it."""
    if kind == "hamming":
        return Tile(256, 8, 4)
    if kind in ("float_binary", "float_int8"):
        # Three products each, so less padding where one query is asked.
        return Tile(256, 16, 32, num_stages=2, max_registers=168 if kind == "float_binary" else None)
    if kind == "int8":
        return Tile(128, 32, 128)
    return Tile(128, 32, 32 if dtype == torch.float32 else 64)


def readable(queries: torch.Tensor, rows: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as the kernels read them: copied if the last dimension is not contiguous; packed bits for "hamming" four
    bytes at a time where both allow it."""
    if queries.dtype == torch.float64:
        checks.dtype_error("queries", queries, "float32 or narrower on CUDA")
    queries, rows = (vectors if vectors.stride(1) == 1 else vectors.contiguous() for vectors in (queries, rows))
    if kind == "hamming" and all(_is_whole_words(vectors) for vectors in (queries, rows)):
        return queries.view(torch.int32), rows.view(torch.int32)
    return queries, rows


def _is_whole_words(vectors: torch.Tensor) -> bool:
    return not (vectors.size(1) % 4 or vectors.stride(0) % 4 or vectors.storage_offset() % 4)


@triton.jit
def count_bits(words):  # type: ignore[no-untyped-def]
    """Bits set in each int32, the usual way: in pairs, fours and bytes, then all bytes into the highest."""
    words -= (words >> 1) & 0x55555555
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return (words * 0x01010101) >> 24


@triton.jit
def split_dot(left, query, total):  # type: ignore[no-untyped-def]
    """total + left · query for left exact in bfloat16 and query in float32."""
    high = query.to(tl.bfloat16)
    finite = tl.where(tl.abs(query) < WIDEST, query, 0.0)
    rest = finite - finite.to(tl.bfloat16).to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    total = tl.dot(left, low, total)
    total = tl.dot(left, middle, total)
    return tl.dot(left, high, total)


@triton.jit  # type: ignore[untyped-decorator]
def score_tile(  # type: ignore[no-untyped-def]
    queries,
    rows,
    scale,
    offset,
    query,
    is_query,
    row,
    is_row,
    query_stride,
    row_stride,
    width,
    row_width,
    kind: tl.constexpr,
    block_rows: tl.constexpr,
    block_queries: tl.constexpr,
    depth: tl.constexpr,
):
    """Scores [block_rows, block_queries] float32 of the rows numbered row [block_rows] int64 (read where is_row) and
    the queries numbered query [block_queries] int64 (read where is_query)."""
    is_exact: tl.constexpr = kind == "int8" or kind == "hamming"
    total = tl.zeros((block_rows, block_queries), tl.int32 if is_exact else tl.float32)
    row_start = (rows + row * row_stride)[:, None]
    query_start = (queries + query * query_stride)[None, :]
    for start in range(0, row_width, depth):
        place = start + tl.arange(0, depth)
        inside = place < row_width
        codes = tl.load(row_start + place[None, :], mask=is_row[:, None] & inside[None, :], other=0)
        if kind == "float_binary":
            for bit in range(8):
                signs = tl.where(((codes >> (7 - bit)) & 1) != 0, 1.0, -1.0).to(tl.bfloat16)
                dimension = 8 * place + bit
                is_value = is_query[None, :] & (dimension < width)[:, None]
                values = tl.load(query_start + dimension[:, None], mask=is_value, other=0.0)
                total = split_dot(signs, values, total)
        else:
            values = tl.load(query_start + place[:, None], mask=is_query[None, :] & inside[:, None], other=0)
            if kind == "hamming":
                differing = codes.to(tl.int32)[:, :, None] ^ values.to(tl.int32)[None, :, :]
                total -= tl.sum(count_bits(differing), axis=1)
            elif kind == "float_int8":
                total = split_dot(codes.to(tl.float32).to(tl.bfloat16), values, total)
            else:
                total = tl.dot(codes, values, total, input_precision="tf32x3", out_dtype=total.dtype)
    scores = total.to(tl.float32)
    if scale is not None:
        factor = tl.load(scale + query, mask=is_query, other=0.0)[None, :]
        addend = tl.zeros_like(factor)
        if offset is not None:
            addend = tl.load(offset + query, mask=is_query, other=0.0)[None, :]
        # One rounding, said explicitly: a compiler's choice might differ from kernel to kernel.
        scores = tl.fma(scores, tl.broadcast_to(factor, scores.shape), tl.broadcast_to(addend, scores.shape))
    elif offset is not None:
        scores += tl.load(offset + query, mask=is_query, other=0.0)[None, :]
    return scores
