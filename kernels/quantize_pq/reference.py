"""Product quantisation in plain torch: the definition that every faster kernel is compared with."""

import torch


def quantize_pq(rows: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """The code of each part's nearest centroid, two a byte."""
    parts, _, width = codebooks.shape
    differences = rows.reshape(-1, parts, 1, width) - codebooks
    distances = differences.square().sum(3)
    nearest = distances.where(distances == distances, torch.inf).argmin(2)
    return (nearest[:, 0::2] + 16 * nearest[:, 1::2]).to(torch.uint8)
