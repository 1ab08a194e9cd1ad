"""The layers as the ops one by one: the definition, and what answers where no kernel does all of them at once."""

from collections.abc import Callable
from typing import Any

import torch

from embedmux.kernels.attention import attention
from embedmux.kernels.library import Op
from embedmux.kernels.lora_matmul import lora_matmul
from embedmux.kernels.norm import add_layer_norm


def post_norm_layers(
    x: torch.Tensor,
    offsets: torch.Tensor,
    num_heads: int,
    scale: float,
    eps: float,
    activation: str,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    norms: list[torch.Tensor],
    arena: torch.Tensor,
    adapters: list[torch.Tensor],
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    packed: list[torch.Tensor],
    segment_sets: torch.Tensor | None = None,
) -> torch.Tensor:
    """See the package: every step is an op, and runs as the device runs it; in float64 (tests) as its reference."""
    hidden, num_sets = x.size(1), len(weights) // len(biases)

    def step(op: Op) -> Callable[..., Any]:
        return op.reference if x.dtype == torch.float64 else op

    def linear(layer: int, index: int, rows: torch.Tensor) -> torch.Tensor:
        if segment_sets is None:
            return multiply(layer, index, 0, rows, segment_offsets, segment_slots)
        parts = []
        for segment, weight_set in enumerate(segment_sets.tolist()):
            first, last = segment_offsets[segment : segment + 2].tolist()
            own = torch.tensor([0, last - first], dtype=torch.int32)
            slots = segment_slots[segment : segment + 1]
            parts.append(multiply(layer, index, weight_set, rows[first:last], own, slots))
        return torch.cat(parts)

    def multiply(
        layer: int, index: int, weight_set: int, rows: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        place, own = 4 * (layer * num_sets + weight_set) + index, 4 * layer + index
        found: torch.Tensor = step(lora_matmul)(
            rows, weights[place], biases[own], arena, adapters[own], offsets, slots,
            [hidden] * 3 if index == 0 else [weights[place].size(0)], activation if index == 2 else "none",
            packed[place] if packed else None,
        )  # fmt: skip
        return found

    for layer in range(len(biases) // 4):
        own = norms[4 * layer : 4 * layer + 4]
        q, k, v = linear(layer, 0, x).view(x.size(0), 3, num_heads, hidden // num_heads).unbind(1)
        context = step(attention)(q, k, v, offsets, False, -1, scale).reshape(x.size(0), hidden)
        states = step(add_layer_norm)(linear(layer, 1, context), x, own[0], own[1], eps)
        x = step(add_layer_norm)(linear(layer, 3, linear(layer, 2, states)), states, own[2], own[3], eps)
    return x
