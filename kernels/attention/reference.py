"""Packed attention in plain torch: the definition that every faster kernel is compared with."""

from itertools import pairwise

import torch


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> torch.Tensor:
    """softmax(scale · Q Kᵀ + mask) V for each sequence, summed in at least float32."""
    wide, group = torch.promote_types(q.dtype, torch.float32), q.size(1) // k.size(1)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for begin, end in pairwise(offsets.tolist()):
        queries, keys, values = (x[begin:end].to(wide).transpose(0, 1) for x in (q, k, v))
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        place = torch.arange(end - begin, device=q.device)
        ahead = place[None, :] - place[:, None]
        hidden = (ahead > 0) & causal | (ahead.abs() > window) & (window >= 0)
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
        out[begin:end] = (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
    return out
