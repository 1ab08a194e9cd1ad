"""pq_topk on NVIDIA GPUs: up to 32 hits in two launches that never write the scores; more by sorting slabs of them.

Up to MAX_FUSED: a program walks through blocks of rows for one query and keeps the best k in registers; a second launch
merges what the programs found. A score and its row make one int64 key whose order is the contract's: the score's bits
as an ordered integer above, the row's complement below. Keys are unique, so the result does not depend on how rows are
dealt to programs. A block's keys are taken from the greatest down until none beats the k-th best so far. More hits
would not fit into registers: torch sorts their scores, stably, so that ties keep the order of rows.

The tables of a query, 3 KiB at M = 48, are looked up from the first-level cache.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.cuda_topk import LOWEST, MAX_FUSED, MAX_PROGRAMS, ROWS, SLAB_BYTES, flip_below_zero, merge_kernel
from embedmux.kernels.launch import launch
from embedmux.kernels.pq_topk import BLOCK_ROWS, check

BLOCK = 1024
HIGHEST = tl.constexpr(2**63 - 1)
PACKED_ROWS = tl.constexpr(BLOCK_ROWS)


@triton.jit  # type: ignore[untyped-decorator]
def score_rows(table, codes, row, is_row, columns: tl.constexpr, packed: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of a block of rows, looked up and added for m = 0, 1, .. in turn; NaN as minus infinity, -0.0 as 0.0."""
    step: tl.constexpr = PACKED_ROWS if packed else 1
    byte = codes + row // step * (columns * step) + row % step
    scores = tl.zeros(row.shape, tl.float32)
    for column in range(columns):
        pair = tl.load(byte + column * step, mask=is_row, other=0).to(tl.int32)
        scores += tl.load(table + column * 32 + (pair & 15))
        scores += tl.load(table + column * 32 + 16 + (pair >> 4))
    return tl.where(scores == scores, scores + 0.0, float("-inf"))


@triton.jit(do_not_specialize=["num_rows", "k", "parts", "blocks_each"])  # type: ignore[untyped-decorator]
def best_of_blocks_kernel(  # type: ignore[no-untyped-def]
    tables,
    codes,
    found,
    num_rows,
    k,
    parts,
    blocks_each,
    columns: tl.constexpr,
    packed: tl.constexpr,
    block: tl.constexpr,
    places: tl.constexpr,
):
    """found [Q, parts, k]: keys of the best rows of each part, in no order, LOWEST.. where too few."""
    part, query = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    place = tl.arange(0, places).to(tl.int64)
    # Unique, so that one place can be named by its key; places behind k are never the least.
    best = tl.where(place < k, LOWEST + 1 + place, HIGHEST)
    for index in range(part * blocks_each, min((part + 1) * blocks_each, tl.cdiv(num_rows, block))):
        row = tl.cast(index, tl.int64) * block + tl.arange(0, block)
        is_row = row < num_rows
        scores = score_rows(tables + query * columns * 32, codes, row, is_row, columns, packed)
        order = flip_below_zero(scores.to(tl.int32, bitcast=True)).to(tl.int64)
        keys = tl.where(is_row, (order << 32) | (row ^ ROWS), LOWEST)
        greatest, least = tl.max(keys, axis=0), tl.min(best, axis=0)
        while greatest > least:
            best = tl.where(best == least, greatest, best)
            keys = tl.where(keys == greatest, LOWEST, keys)
            greatest, least = tl.max(keys, axis=0), tl.min(best, axis=0)
    tl.store(found + (query * parts + part) * k + place, best, mask=place < k)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def scores_kernel(  # type: ignore[no-untyped-def]
    tables, codes, scores, num_rows, columns: tl.constexpr, packed: tl.constexpr, block: tl.constexpr
):
    """scores [Q, n] of every row."""
    blocks = tl.cdiv(num_rows, block)
    query = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * block + tl.arange(0, block)
    is_row = row < num_rows
    found = score_rows(tables + query * columns * 32, codes, row, is_row, columns, packed)
    tl.store(scores + query * num_rows + row, found, mask=is_row)


def pq_topk(
    tables: torch.Tensor, codes: torch.Tensor, k: int, packed: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the contract."""
    check(tables, codes, k, packed)
    scores = tables.new_empty(tables.size(0), k)
    ids = tables.new_empty(tables.size(0), k, dtype=torch.int64)
    source = (codes if packed is None else packed).contiguous()
    by = _by_registers if k <= MAX_FUSED else _by_sorting
    by(tables.contiguous(), source, codes.shape, packed is not None, scores, ids)
    return scores, ids


def _by_registers(
    tables: torch.Tensor,
    source: torch.Tensor,
    shape: torch.Size,
    packed: bool,
    scores: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    (num_rows, columns), (num_queries, k) = shape, scores.shape
    blocks = triton.cdiv(num_rows, BLOCK)
    blocks_each = triton.cdiv(blocks, MAX_PROGRAMS)
    parts = triton.cdiv(blocks, blocks_each)
    places = max(8, triton.next_power_of_2(k))
    found = tables.new_empty(num_queries, parts, k, dtype=torch.int64)
    launch(
        best_of_blocks_kernel, (parts * num_queries,), tables, source, found, num_rows, k, parts, blocks_each, columns,
        packed, BLOCK, places, num_warps=4,
    )  # fmt: skip
    block = MAX_PROGRAMS * places
    launch(merge_kernel, (num_queries,), found, scores, ids, parts * k, k, block, num_warps=max(4, block // 512))


def _by_sorting(
    tables: torch.Tensor,
    source: torch.Tensor,
    shape: torch.Size,
    packed: bool,
    scores: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    (num_rows, columns), (num_queries, k) = shape, scores.shape
    step = max(1, SLAB_BYTES // (4 * num_rows))
    for start in range(0, num_queries, step):
        slab = slice(start, min(num_queries, start + step))
        every = tables.new_empty(slab.stop - start, num_rows)
        grid = (triton.cdiv(num_rows, BLOCK) * (slab.stop - start),)
        launch(scores_kernel, grid, tables[slab], source, every, num_rows, columns, packed, BLOCK, num_warps=4)
        ordered, places = every.sort(dim=1, descending=True, stable=True)
        scores[slab], ids[slab] = ordered[:, :k], places[:, :k]
