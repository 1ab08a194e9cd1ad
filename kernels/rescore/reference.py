"""Scores of named rows in plain torch: the definition that every faster kernel is compared with."""

import torch

from embedmux.kernels.similarity.reference import similarity


def rescore(
    queries: torch.Tensor,
    rows: torch.Tensor,
    candidates: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> torch.Tensor:
    """Scores [Q, c] of the named rows; -inf for -1 and for NaN."""
    scores = similarity(queries, rows, kind, query_scale, query_offset)
    missing = scores.new_full((queries.size(0), 1), -torch.inf)
    named = torch.cat((scores, missing), 1).gather(1, candidates % (rows.size(0) + 1))  # -1 is the last column
    return named.where(~named.isnan(), -torch.inf)
