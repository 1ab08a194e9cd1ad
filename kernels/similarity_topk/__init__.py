"""The k nearest rows of each query, by brute force, without ever writing all scores.

Shape key as in similarity: Q queries, n rows, D dimensions.

queries, rows, kind, query_scale and query_offset as similarity takes them; 1 <= k <= min(n, 4096) -> scores [Q, k]
float32 and ids [Q, k] int64, both contiguous. An id is the number of a row, from 0.

The scores are those of similarity, bit by bit, sorted from the greatest down; equal scores stand in the order of their
ids, and where the k-th score is shared the lower ids are in. A NaN score counts as -inf, and is given as -inf: it comes
behind every number, and never before a lower id that also has -inf. 0.0 and -0.0 are equal.

``reference.py`` is the definition, ``csrc/similarity_topk.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.similarity import check_vectors
from embedmux.kernels.similarity_topk import reference

MAX_K = 4096
SCHEMA = (
    "(Tensor queries, Tensor rows, str kind, int k, Tensor? query_scale=None, Tensor? query_offset=None)"
    " -> (Tensor scores, Tensor ids)"
)


def check(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    k: int,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> None:
    check_vectors(queries, rows, kind, query_scale, query_offset)
    if not 1 <= k <= MAX_K:
        checks.value_error("k", k, f"from 1 to {MAX_K}")
    if k > rows.size(0):
        checks.value_error("k", k, f"at most the {rows.size(0)} rows there are")


def _reference(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    k: int,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(queries, rows, kind, k, query_scale, query_offset)
    return reference.similarity_topk(queries, rows, kind, k, query_scale, query_offset)


def _fake(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    k: int,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(queries, rows, kind, k, query_scale, query_offset)
    shape = (queries.size(0), k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape, dtype=torch.int64)


similarity_topk = define("similarity_topk", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
