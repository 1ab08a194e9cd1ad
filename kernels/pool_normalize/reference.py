"""Pooling and normalising in plain torch: the definition that every faster kernel is compared with."""

from itertools import pairwise

import torch


def pool_normalize(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, dimensions: int, normalize: bool
) -> torch.Tensor:
    """One vector a sequence, in at least float32."""
    rows = hidden[:, :dimensions].to(torch.promote_types(hidden.dtype, torch.float32))
    if pooling == "mean":
        out = rows.new_empty(offsets.size(0) - 1, dimensions)
        for index, (begin, end) in enumerate(pairwise(offsets.tolist())):
            out[index] = rows[begin:end].mean(0)
    else:
        out = rows[offsets[:-1].long() if pooling == "cls" else offsets[1:].long() - 1]
    return torch.nn.functional.normalize(out, dim=1) if normalize else out
