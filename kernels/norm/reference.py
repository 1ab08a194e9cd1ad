"""Residual and LayerNorm in plain torch: the definition that every faster kernel is compared with."""

import torch


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """LayerNorm(x + residual) · weight + bias for each row, in at least float32."""
    return normalize(add(x, residual), weight, bias, eps, centred=True).to(x.dtype)


def add(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """x + residual in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide) if residual is None else x.to(wide) + residual.to(wide)


def normalize(
    row: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, *, centred: bool
) -> torch.Tensor:
    """LayerNorm of wide rows [T, H], or RMSNorm where they are not centred."""
    centre = row - row.mean(1, keepdim=True) if centred else row
    scaled = centre * torch.rsqrt(centre.square().mean(1, keepdim=True) + eps) * weight.to(row.dtype)
    return scaled if bias is None else scaled + bias.to(row.dtype)
