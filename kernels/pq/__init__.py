"""Product quantisation with 4-bit codes (Jegou, Douze and Schmid 2011): rows in M / 2 bytes, found by look-up.

Shape key: n rows, D dimensions, M subquantizers (even), Q queries.

A row is cut into M parts of D / M values, and each part is written as the number of the nearest of 16 centroids; two
codes share a byte, the earlier part in the low nibble. ``quantize_pq`` writes codes, ``pq_tables`` turns queries into
tables of their inner products with the centroids, ``pq_topk`` finds the rows whose entries have the greatest sums.
``pack_pq`` lays codes out for it once and for all.
"""

import torch

from embedmux.kernels.pq.pq_topk import pack_pq, pq_topk
from embedmux.kernels.pq.quantize_pq import quantize_pq


def pq_tables(queries: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """queries [Q, D], codebooks [M, 16, D / M], one floating dtype -> [Q, M, 16] inner products of that dtype.

    A query's bits depend on that query alone where torch's batched product keeps them so; no law is promised here.
    """
    parts, _, width = codebooks.shape
    return torch.einsum("qmd,mcd->qmc", queries.view(-1, parts, width), codebooks).contiguous()


__all__ = ["pack_pq", "pq_tables", "pq_topk", "quantize_pq"]
