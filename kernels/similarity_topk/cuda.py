"""similarity_topk on NVIDIA GPUs: up to 32 in two launches that never write the scores; more by sorting slabs of them.

Up to MAX_FUSED rows wanted: a program walks through many tiles of rows and keeps the best k of each query of its tile
in registers; a second launch merges what the programs found. A score and its row make one int64 key whose order is the
contract's: the score's bits as an ordered integer above, the row's complement below. Keys are unique, so the result
does not depend on how rows are dealt to programs. A tile's keys are taken from the greatest down until none beats the
k-th best so far; after the first tiles that is seldom more than a few.

More: the list would not fit into registers. Scores are written for as many queries at once as SLAB_BYTES hold, and
sorted by torch (stable, so that ties keep the order of rows).
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.cuda_topk import LOWEST, MAX_FUSED, MAX_PROGRAMS, ROWS, SLAB_BYTES, flip_below_zero, merge_kernel
from embedmux.kernels.launch import launch
from embedmux.kernels.similarity.cuda import similarity
from embedmux.kernels.similarity.cuda_tile import readable, score_tile, tile_of
from embedmux.kernels.similarity_topk import check

MAX_REGISTERS = 255  # left to itself the assembler spills a few to fit two blocks on a multiprocessor
HIGHEST = tl.constexpr(2**63 - 1)
TAKEN = tl.constexpr(-(2**31))  # below the order of every score


@triton.jit  # type: ignore[untyped-decorator]
def next_key(order, tile, block_rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each query the place of its greatest score in the tile, of equals the first, and its key; LOWEST for none."""
    value, greatest = tl.max(order, axis=0, return_indices=True)
    row = tl.cast(tile, tl.int64) * block_rows + greatest
    key = (value.to(tl.int64) << 32) | (-row + ROWS)
    return greatest, tl.where(value > TAKEN, key, LOWEST)


@triton.jit(do_not_specialize=["num_queries", "num_rows", "k", "tiles_each"])  # type: ignore[untyped-decorator]
def best_of_tiles_kernel(  # type: ignore[no-untyped-def]
    queries,
    rows,
    scale,
    offset,
    found,
    num_queries,
    num_rows,
    k,
    tiles_each,
    query_stride,
    row_stride,
    width,
    row_width,
    kind: tl.constexpr,
    block_rows: tl.constexpr,
    block_queries: tl.constexpr,
    depth: tl.constexpr,
    places: tl.constexpr,
):
    """found [Q, programs, k]: keys of the best rows of each program's tiles, in no order, LOWEST.. where too few."""
    query_tiles = tl.cdiv(num_queries, block_queries)
    part = tl.program_id(0) // query_tiles
    query = (tl.program_id(0) % query_tiles * block_queries + tl.arange(0, block_queries)).to(tl.int64)
    is_query = query < num_queries
    place = tl.arange(0, places)[:, None].to(tl.int64)
    # Unique, so that one place can be named by its key; places behind k are never the least.
    best = tl.where(place < k, place + (LOWEST + 1), HIGHEST) + tl.zeros((places, block_queries), tl.int64)
    for tile in range(part * tiles_each, min((part + 1) * tiles_each, tl.cdiv(num_rows, block_rows))):
        row = tl.cast(tile, tl.int64) * block_rows + tl.arange(0, block_rows)
        is_row = row < num_rows
        scores = score_tile(
            queries, rows, scale, offset, query, is_query, row, is_row, query_stride, row_stride,
            width, row_width, kind, block_rows, block_queries, depth,
        )  # fmt: skip
        scores = tl.where(scores == scores, scores + 0.0, float("-inf"))  # NaN is not itself; -0.0 becomes 0.0
        order = flip_below_zero(scores.to(tl.int32, bitcast=True))
        order = tl.where(is_row[:, None] & is_query[None, :], order, TAKEN)
        greatest, key = next_key(order, tile, block_rows)
        least = tl.min(best, axis=0)
        while tl.max((key > least).to(tl.int32), axis=0) > 0:
            best = tl.where((best == least[None, :]) & (key > least)[None, :], key[None, :], best)
            order = tl.where(tl.arange(0, block_rows)[:, None] == greatest[None, :], TAKEN, order)
            greatest, key = next_key(order, tile, block_rows)
            least = tl.min(best, axis=0)
    parts = tl.num_programs(0) // query_tiles
    target = (query[None, :] * parts + part) * k + place
    tl.store(found + target, best, mask=is_query[None, :] & (place < k))


def similarity_topk(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    k: int,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the contract."""
    check(queries, rows, kind, k, query_scale, query_offset)
    scores = queries.new_empty(queries.size(0), k, dtype=torch.float32)
    ids = queries.new_empty(queries.size(0), k, dtype=torch.int64)
    by = _by_registers if k <= MAX_FUSED else _by_sorting
    by(queries, rows, kind, query_scale, query_offset, scores, ids)
    return scores, ids


def _by_registers(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    scores: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    queries, rows = readable(queries, rows, kind)
    (num_queries, width), (num_rows, row_width), k = queries.shape, rows.shape, scores.size(1)
    tile = tile_of(kind, queries.dtype)
    tiles = triton.cdiv(num_rows, tile.rows)
    tiles_each = triton.cdiv(tiles, MAX_PROGRAMS)
    parts = triton.cdiv(tiles, tiles_each)
    places = max(8, triton.next_power_of_2(k))
    found = queries.new_empty(num_queries, parts, k, dtype=torch.int64)
    launch(
        best_of_tiles_kernel, (parts * triton.cdiv(num_queries, tile.queries),), queries, rows, scale, offset, found,
        num_queries, num_rows, k, tiles_each, queries.stride(0), rows.stride(0), width, row_width, kind,
        tile.rows, tile.queries, tile.depth, places, num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=None if kind == "hamming" else MAX_REGISTERS,
    )  # fmt: skip
    block = MAX_PROGRAMS * places
    launch(merge_kernel, (num_queries,), found, scores, ids, parts * k, k, block, num_warps=block // 512)


def _by_sorting(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    scores: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    num_queries, k = scores.shape
    step = max(1, SLAB_BYTES // (4 * rows.size(0)))
    for start in range(0, num_queries, step):
        slab = slice(start, start + step)
        scale_here, offset_here = (None if vector is None else vector[slab] for vector in (scale, offset))
        every = similarity(queries[slab], rows, kind, scale_here, offset_here)
        every = every.where(every == every, -torch.inf).add_(0.0)  # NaN is not itself; -0.0 becomes 0.0
        ordered, places = every.sort(dim=1, descending=True, stable=True)
        scores[slab], ids[slab] = ordered[:, :k], places[:, :k]
