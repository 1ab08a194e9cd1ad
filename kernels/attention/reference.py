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
    num_keys: list[int],
) -> torch.Tensor:
    """softmax(scale · Q Kᵀ + mask) V for each sequence, summed in at least float32."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for (begin, end), count in zip(pairwise(offsets.tolist()), num_keys, strict=True):
        out[begin:end] = attend(q[begin:end], k[begin:end], v[begin:end], causal, window, scale, count)
    return out


def attention_with_prefixes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
    prefix_offsets: torch.Tensor,
    prefix_of: torch.Tensor,
    num_keys: list[int],
) -> torch.Tensor:
    """The same where sequence s continues prefix prefix_of[s] (-1: none)."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts = [slice(*edges) for edges in pairwise(prefix_offsets.tolist())] + [slice(0, 0)]  # the last is [-1]
    edges = pairwise(offsets.tolist())
    for (begin, end), prefix, count in zip(edges, prefix_of.tolist(), num_keys, strict=True):
        shared = parts[prefix]
        keys, values = (torch.cat([before[shared], own[begin:end]]) for before, own in ((prefix_k, k), (prefix_v, v)))
        visible = shared.stop - shared.start + count
        out[begin:end] = attend(q[begin:end], keys, values, causal, window, scale, visible)
    return out


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, window: int, scale: float, num_keys: int
) -> torch.Tensor:
    """One sequence: queries at the last len(q) of len(k) positions, of which the first num_keys are keys."""
    wide, group = torch.promote_types(q.dtype, torch.float32), q.size(1) // k.size(1)
    queries, keys, values = (x.to(wide).transpose(0, 1) for x in (q, k, v))
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    place = torch.arange(len(k), device=q.device)
    ahead = place[None, :] - place[len(k) - len(q) :, None]
    hidden = (ahead > 0) & causal | (ahead.abs() > window) & (window >= 0) | (place >= num_keys)[None, :]
    scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(0, 1).to(q.dtype)
