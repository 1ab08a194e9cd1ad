"""maxsim on NVIDIA GPUs: a program scores one pair of query and document, tiles of tokens by tl.dot.

Documents' tokens are the rows of a product and the query's its columns, so that neither is transposed in memory and a
tile of 64 or 128 rows suits every tensor core. The running maxima of a tile of query tokens stay in registers over all
of the document; their sum over a tile is a tree of fixed shape, over tiles it is taken in order: what a pair's score is
depends on that pair alone.
"""

import torch
import triton
import triton.language as tl

from embedmux.kernels.launch import launch
from embedmux.kernels.maxsim import check

BLOCK_QUERY = 32
MAX_DEPTH_BYTES = {1: 256, 2: 256, 4: 128}  # of a row of a tile, by bytes of a value; float32 takes more registers


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(tokens, token, end, first, stride, width: tl.constexpr, depth: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns [first, first + depth) of the tokens before ``end``; zero elsewhere."""
    column = first + tl.arange(0, depth)
    mask = (token < end)[:, None] & (column < width)[None, :]
    return tl.load(tokens + token.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0)


@triton.jit(do_not_specialize=["num_documents"])  # type: ignore[untyped-decorator]
def maxsim_kernel(  # type: ignore[no-untyped-def]
    queries,
    query_offsets,
    documents,
    document_offsets,
    scores,
    num_documents,
    query_stride,
    document_stride,
    width: tl.constexpr,
    depth: tl.constexpr,
    block_query: tl.constexpr,
    block_document: tl.constexpr,
):
    """scores [nq, nd]: one pair; documents run fastest. One axis, since the others end at 65,535 programs."""
    document, query = tl.program_id(0) % num_documents, (tl.program_id(0) // num_documents).to(tl.int64)
    start, end = tl.load(document_offsets + document), tl.load(document_offsets + document + 1)
    query_start, query_end = tl.load(query_offsets + query), tl.load(query_offsets + query + 1)
    whole: tl.constexpr = queries.dtype.element_ty == tl.int8
    sums: tl.constexpr = tl.int32 if whole else tl.float32
    lowest: tl.constexpr = -(2**31) if whole else float("-inf")
    # Whole numbers are added exactly and rounded once.
    score = tl.zeros((), tl.int64 if whole else tl.float32)
    for query_first in range(query_start, query_end, block_query):
        query_token = query_first + tl.arange(0, block_query)
        if width <= depth:  # the whole of the query's tile stays
            left = load_tile(queries, query_token, query_end, 0, query_stride, width, depth)
        best = tl.full((block_query,), lowest, sums)
        for first in range(start, end, block_document):
            token = first + tl.arange(0, block_document)
            dots = tl.zeros((block_document, block_query), sums)
            if width <= depth:
                right = load_tile(documents, token, end, 0, document_stride, width, depth)
                dots = tl.dot(right, left.T, dots, input_precision="tf32x3", out_dtype=sums)
            else:
                for column in range(0, width, depth):
                    left = load_tile(queries, query_token, query_end, column, query_stride, width, depth)
                    right = load_tile(documents, token, end, column, document_stride, width, depth)
                    dots = tl.dot(right, left.T, dots, input_precision="tf32x3", out_dtype=sums)
            is_dot = (token < end)[:, None] & (dots == dots)  # NaN is not itself
            best = tl.maximum(best, tl.max(tl.where(is_dot, dots, lowest), axis=0))
        best = tl.where(query_token < query_end, best, 0)
        score += tl.sum(best.to(tl.int64) if whole else best, axis=0)
    result = tl.where(end > start, score.to(tl.float32), float("-inf"))
    tl.store(scores + query * num_documents + document, result)


def maxsim(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, document_offsets: torch.Tensor
) -> torch.Tensor:
    """See the contract."""
    check(queries, query_offsets, documents, document_offsets)
    queries, documents = (t if t.stride(1) == 1 else t.contiguous() for t in (queries, documents))
    num_queries, num_documents = query_offsets.size(0) - 1, document_offsets.size(0) - 1
    scores = queries.new_empty(num_queries, num_documents, dtype=torch.float32)
    width, bytes_each = queries.size(1), queries.element_size()
    depth = min(max(32, triton.next_power_of_2(width)), MAX_DEPTH_BYTES[bytes_each] // bytes_each)
    # Where a document's tile is read again for every query tile, 128 rows of codes leave too few registers.
    block_document = 64 if bytes_each == 4 or width > depth else 128
    launch(
        maxsim_kernel, (num_documents * num_queries,), queries, query_offsets, documents, document_offsets, scores,
        num_documents, queries.stride(0), documents.stride(0), width, depth, BLOCK_QUERY, block_document,
        num_warps=8 if bytes_each == 4 else 4, num_stages=2,
    )  # fmt: skip
    return scores
