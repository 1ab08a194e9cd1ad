"""similarity on NVIDIA GPUs: a program scores one tile of rows with one tile of queries."""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.similarity import check_vectors
from embedmux.kernels.similarity.cuda_tile import readable, score_tile, tile_of


@triton.jit(do_not_specialize=["num_queries", "num_rows"])  # type: ignore[untyped-decorator]
def similarity_kernel(  # type: ignore[no-untyped-def]
    queries,
    rows,
    scale,
    offset,
    out,
    num_queries,
    num_rows,
    query_stride,
    row_stride,
    width,
    row_width,
    kind: tl.constexpr,
    block_rows: tl.constexpr,
    block_queries: tl.constexpr,
    depth: tl.constexpr,
):
    # Neighbours share a tile of rows, which the second one finds in the cache.
    query_tiles = tl.cdiv(num_queries, block_queries)
    tile = tl.program_id(0) // query_tiles
    query = (tl.program_id(0) % query_tiles * block_queries + tl.arange(0, block_queries)).to(tl.int64)
    row = tile.to(tl.int64) * block_rows + tl.arange(0, block_rows)
    is_query, is_row = query < num_queries, row < num_rows
    scores = score_tile(
        queries, rows, scale, offset, query, is_query, row, is_row, query_stride, row_stride,
        width, row_width, kind, block_rows, block_queries, depth,
    )  # fmt: skip
    place = query[None, :] * num_rows + row[:, None]
    tl.store(out + place, scores, mask=is_query[None, :] & is_row[:, None])


def similarity(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """See the contract."""
    check_vectors(queries, rows, kind, query_scale, query_offset)
    queries, rows = readable(queries, rows, kind)
    (num_queries, width), (num_rows, row_width) = queries.shape, rows.shape
    tile = tile_of(kind, queries.dtype)
    out = queries.new_empty(num_queries, num_rows, dtype=torch.float32)
    programs = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_queries, tile.queries)
    launch(
        similarity_kernel, (programs,), queries, rows, query_scale, query_offset, out, num_queries, num_rows,
        queries.stride(0), rows.stride(0), width, row_width, kind, tile.rows, tile.queries, tile.depth,
        num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.max_registers,
    )  # fmt: skip
    return out
