"""The gated activations in plain torch: the definition that every faster kernel is compared with."""

import torch

from embedmux.kernels.lora_matmul.reference import activate


def gated_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """act(first half) · second half of each row, in at least float32."""
    return activate(x.to(torch.promote_types(x.dtype, torch.float32)), kind).to(x.dtype)
