"""The k rows of greatest score among product-quantised codes, each score a sum of looked-up table entries.

Shape key: Q queries, n rows, M subquantizers (even), k hits.

tables [Q, M, 16] float32, codes [n, M / 2] uint8 as ``quantize_pq`` writes them, k in 1..min(n, 4096) -> scores [Q, k]
float32 and ids [Q, k] int64. The score of a row is the sum of tables[q, m, code m], added up in float32 in the order of
m; greater is nearer. Hits stand from the greatest score down, of equal scores the lower id first. A score that is NaN
counts as minus infinity and is given back so.

packed is ``pack_pq(codes)``: the codes in blocks of 64 rows, [ceil(n / 64), M / 2, 64] uint8, each block byte by byte
of its rows. It changes the speed and never the result; its values are the caller's word, as are those of codes.

A pair's score has the same bits in every call, on every instruction set and on CUDA; which rows are hits follows from
the scores alone, so the result depends neither on the other queries nor on the number of threads.

Source: Jegou, Douze and Schmid 2011; the CPU kernel sorts rows out by byte tables in registers, as in André, Kermarrec
and Le Scouarnec 2015, but gives the exact result. ``reference.py`` is the definition, ``csrc/pq_topk.cpp`` the CPU
kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.pq_topk import reference

CENTROIDS = 16
BLOCK_ROWS = 64
MAX_K = 4096
SCHEMA = "(Tensor tables, Tensor codes, int k, Tensor? packed) -> (Tensor, Tensor)"
Hits = tuple[torch.Tensor, torch.Tensor]


def check(tables: torch.Tensor, codes: torch.Tensor, k: int, packed: torch.Tensor | None) -> None:
    if codes.dim() != 2 or codes.size(1) == 0:
        checks.shape_error("codes", codes, "[n, M / 2] with M at least 2")
    if codes.dtype != torch.uint8:
        checks.dtype_error("codes", codes, "torch.uint8")
    if tables.dim() != 3 or tables.size(1) != 2 * codes.size(1) or tables.size(2) != CENTROIDS:
        checks.shape_error("tables", tables, f"[Q, M, 16] with M = {2 * codes.size(1)}")
    if tables.dtype not in (torch.float32, torch.float64):
        checks.dtype_error("tables", tables, "torch.float32")
    if not 1 <= k <= min(codes.size(0), MAX_K):
        checks.value_error("k", k, f"in 1..{min(codes.size(0), MAX_K)}, at most the rows of codes and {MAX_K}")
    if packed is not None:
        if packed.shape != (-(-codes.size(0) // BLOCK_ROWS), codes.size(1), BLOCK_ROWS):
            checks.shape_error("packed", packed, f"pack_pq of codes {list(codes.shape)}")
        if packed.dtype != torch.uint8:
            checks.dtype_error("packed", packed, "torch.uint8")


def _reference(tables: torch.Tensor, codes: torch.Tensor, k: int, packed: torch.Tensor | None) -> Hits:
    check(tables, codes, k, packed)
    return reference.pq_topk(tables, codes, k, packed)


def _fake(tables: torch.Tensor, codes: torch.Tensor, k: int, packed: torch.Tensor | None) -> Hits:
    check(tables, codes, k, packed)
    return tables.new_empty(tables.size(0), k), tables.new_empty(tables.size(0), k, dtype=torch.int64)


def _fake_pack(codes: torch.Tensor) -> torch.Tensor:
    return codes.new_empty(-(-codes.size(0) // BLOCK_ROWS), codes.size(1), BLOCK_ROWS)


pq_topk = define("pq_topk", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
pack_pq = define("pack_pq", "(Tensor codes) -> Tensor", reference=reference.pack_pq, fake=_fake_pack)


def pq_tables(queries: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """queries [Q, D], codebooks [M, 16, D / M], one floating dtype -> [Q, M, 16] inner products of that dtype.

    A query's bits depend on that query alone where torch's batched product keeps them so; no law is promised here.
    """
    parts, _, width = codebooks.shape
    return torch.einsum("qmd,mcd->qmc", queries.view(-1, parts, width), codebooks).contiguous()
