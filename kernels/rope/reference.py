"""The rotation in plain torch: the definition that every faster kernel is compared with."""

import torch


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both q and k, normed per head where there is a weight, then turned."""
    cosines, sines = cos[positions, None], sin[positions, None]
    return turn(q, cosines, sines, q_weight, eps), turn(k, cosines, sines, k_weight, eps)


def turn(
    x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Heads x [T, H, D] by the angles [T, 1, R / 2], in at least float32."""
    heads = x.to(torch.promote_types(x.dtype, torch.float32))
    if weight is not None:
        heads = heads * torch.rsqrt(heads.square().mean(2, keepdim=True) + eps) * weight.to(heads.dtype)
    half = cosines.size(2)
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = first * cosines - second * sines, second * cosines + first * sines
    return torch.cat((*turned, rest), 2).to(x.dtype)
