"""Residual and LayerNorm in plain torch: the definition that every faster kernel is compared with."""

import torch


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """LayerNorm(x + residual) · weight + bias for each row, in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    row = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    centred = row - row.mean(1, keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return (unit * weight.to(wide) + bias.to(wide)).to(x.dtype)
