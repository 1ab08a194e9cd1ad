"""Scores of named rows: the second step of a search that found candidates by a cheaper encoding.

Shape key as in similarity: Q queries, n rows, D dimensions; c candidates of each query (may be 0).

queries, rows, kind, query_scale and query_offset as similarity takes them; candidates [Q, c] int64, numbers of rows, or
-1 where there is none -> [Q, c] float32, contiguous: the score of similarity, bit by bit; -inf for "no candidate" and
for NaN. A row may be named more than once.

A candidate below -1 or not below n is refused on the CPU (ValueError or RuntimeError, with its place). On CUDA, where
looking would mean waiting, it counts as "no candidate": memory outside the rows is never read.

``reference.py`` is the definition, ``csrc/rescore.cpp`` the CPU kernel; the Triton kernel stands in ``cuda.py``.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.rescore import reference
from embedmux.kernels.similarity import check_vectors

SCHEMA = (
    "(Tensor queries, Tensor rows, Tensor candidates, str kind, Tensor? query_scale=None, Tensor? query_offset=None)"
    " -> Tensor"
)


def check(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> None:
    check_vectors(queries, rows, kind, query_scale, query_offset)
    if candidates.dtype != torch.int64:
        checks.dtype_error("candidates", candidates, "torch.int64")
    if candidates.dim() != 2 or candidates.size(0) != queries.size(0):
        checks.shape_error("candidates", candidates, f"[Q, c] with Q = {queries.size(0)}")


def _reference(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    check(queries, rows, candidates, kind, query_scale, query_offset)
    outside = (candidates < -1) | (candidates >= rows.size(0))
    if outside.any():
        checks.value_error("candidates", int(candidates[outside][0]), f"from -1 to {rows.size(0) - 1}")
    return reference.rescore(queries, rows, candidates, kind, query_scale, query_offset)


def _fake(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    check(queries, rows, candidates, kind, query_scale, query_offset)
    return queries.new_empty(candidates.size(), dtype=torch.float32)


rescore = define("rescore", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
