"""The nearest rows in plain torch: the definition that every faster kernel is compared with."""

import torch

from embedmux.kernels.similarity.reference import similarity


def similarity_topk(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    k: int,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, ids) [Q, k] of the k nearest rows, all scores sorted."""
    scores = similarity(queries, rows, kind, query_scale, query_offset)
    comparable = scores.where(~scores.isnan(), -torch.inf)
    ordered, ids = comparable.sort(dim=1, descending=True, stable=True)  # stable: ties keep the order of ids
    return ordered[:, :k].contiguous(), ids[:, :k].contiguous()
