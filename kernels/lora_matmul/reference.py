"""The low-rank product in plain torch: the definition that every faster kernel is compared with."""

from itertools import accumulate

import torch
import torch.nn.functional as F


def lora_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
    packed: torch.Tensor | None,
) -> torch.Tensor:
    """activation(x Wᵀ + bias + B(A x)), in at least float32 (in float64 for float64 inputs: the tests' oracle)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, y = x.to(wide), F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    factors, ends, offsets = arena.to(wide), list(accumulate(slices)), segment_offsets.tolist()
    for segment, slot in enumerate(segment_slots.tolist()):
        if slot < 0:
            continue
        run = slice(offsets[segment], offsets[segment + 1])
        for (a, b, rank), width, end in zip(adapters[slot].tolist(), slices, ends, strict=True):
            down = factors[a : a + rank * x.size(1)].view(rank, x.size(1))
            up = factors[b : b + rank * width].view(rank, width)
            y[run, end - width : end] += rows[run] @ down.T @ up
    return (F.gelu(y) if activation == "gelu" else y).to(x.dtype)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A copy of the weight: the reference has no layout of its own."""
    return weight.clone()
