"""MaxSim in plain torch: the definition that every faster kernel is compared with."""

from itertools import pairwise

import torch


def maxsim(
    queries: torch.Tensor, query_offsets: torch.Tensor, documents: torch.Tensor, document_offsets: torch.Tensor
) -> torch.Tensor:
    """Scores [nq, nd], computed in float64 and rounded once."""
    query_starts, starts = query_offsets.tolist(), document_offsets.tolist()
    dots = queries.double() @ documents.double().T
    dots = dots.where(dots == dots, -torch.inf)
    scores = dots.new_full((len(query_starts) - 1, len(starts) - 1), -torch.inf)
    for j, (first, last) in enumerate(pairwise(starts)):
        if first == last:
            continue
        best = dots[:, first:last].amax(1)
        for i, (start, end) in enumerate(pairwise(query_starts)):
            scores[i, j] = best[start:end].sum()
    return scores.float()
