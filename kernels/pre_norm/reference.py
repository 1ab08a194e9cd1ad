"""Residual and norm in plain torch: the definition that every faster kernel is compared with."""

import torch

from embedmux.kernels.norm.reference import add, normalize


def pre_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual) · weight + bias, x + residual), in at least float32, each rounded once."""
    total = add(x, residual)
    normed = normalize(total, weight, bias, eps, centred=kind == "layer")
    return normed.to(x.dtype), total.to(x.dtype, copy=True).contiguous()
