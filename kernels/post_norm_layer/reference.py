"""The layer as the ops one by one: the definition, and what answers where no kernel does all of it at once."""

from collections.abc import Callable
from typing import Any

import torch

from embedmux.kernels.attention import attention
from embedmux.kernels.library import Op
from embedmux.kernels.lora_matmul import lora_matmul
from embedmux.kernels.norm import add_layer_norm


def post_norm_layer(
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
) -> torch.Tensor:
    """See the package: every step is an op, and runs as the device runs it; in float64 (tests) as its reference."""
    hidden = x.size(1)

    def step(op: Op) -> Callable[..., Any]:
        return op.reference if x.dtype == torch.float64 else op

    def linear(index: int, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = step(lora_matmul)(
            rows, weights[index], biases[index], arena, adapters[index], segment_offsets, segment_slots,
            [hidden] * 3 if index == 0 else [weights[index].size(0)], activation if index == 2 else "none",
            packed[index] if packed else None,
        )  # fmt: skip
        return found

    q, k, v = linear(0, x).view(x.size(0), 3, num_heads, hidden // num_heads).unbind(1)
    context = step(attention)(q, k, v, offsets, False, -1, scale).reshape(x.size(0), hidden)
    states = step(add_layer_norm)(linear(1, context), x, norms[0], norms[1], eps)
    found: torch.Tensor = step(add_layer_norm)(linear(3, linear(2, states)), states, norms[2], norms[3], eps)
    return found
