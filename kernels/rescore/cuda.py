"""rescore on NVIDIA GPUs: a program scores a tile of one query's candidates; their rows are gathered.

The tile is that of similarity with one query in it, so that the bits are the same.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.rescore import check
from embedmux.kernels.similarity.cuda_tile import readable, score_tile, tile_of


@triton.jit(do_not_specialize=["num_rows", "num_candidates"])  # type: ignore[untyped-decorator]
def rescore_kernel(  # type: ignore[no-untyped-def]
    queries,
    rows,
    candidates,
    scale,
    offset,
    out,
    num_rows,
    num_candidates,
    query_stride,
    row_stride,
    candidate_stride,
    width,
    row_width,
    kind: tl.constexpr,
    block_rows: tl.constexpr,
    block_queries: tl.constexpr,
    depth: tl.constexpr,
):
    blocks = tl.cdiv(num_candidates, block_rows)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.arange(0, block_queries)
    query = tl.zeros((block_queries,), tl.int64) + number
    candidate = tl.program_id(0) % blocks * block_rows + tl.arange(0, block_rows)
    is_candidate = candidate < num_candidates
    row = tl.load(candidates + number * candidate_stride + candidate, mask=is_candidate, other=-1)
    is_row = (row >= 0) & (row < num_rows)
    scores = score_tile(
        queries, rows, scale, offset, query, column == 0, row, is_row, query_stride, row_stride,
        width, row_width, kind, block_rows, block_queries, depth,
    )  # fmt: skip
    score = tl.sum(tl.where((column == 0)[None, :], scores, 0.0), axis=1)
    score = tl.where(is_row & (score == score), score, float("-inf"))  # NaN is not itself
    tl.store(out + number * num_candidates + candidate, score, mask=is_candidate)


def rescore(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """See the contract."""
    check(queries, rows, candidates, kind, query_scale, query_offset)
    queries, rows = readable(queries, rows, kind)
    candidates = candidates if candidates.stride(1) == 1 else candidates.contiguous()
    row_width = rows.size(1)
    tile = tile_of(kind, queries.dtype)
    out = queries.new_empty(candidates.size(), dtype=torch.float32)
    grid = (triton.cdiv(candidates.size(1), tile.rows) * queries.size(0),)
    launch(
        rescore_kernel, grid, queries, rows, candidates, query_scale, query_offset, out, rows.size(0),
        candidates.size(1), queries.stride(0), rows.stride(0), candidates.stride(0), queries.size(1), row_width, kind,
        tile.rows, tile.queries, tile.depth, num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )  # fmt: skip
    return out
