"""Final norm, pooling and encoding in plain torch: the definition that every faster kernel is compared with."""

import torch

from embedmux.kernels.pool_normalize.reference import pool_normalize
from embedmux.kernels.quantize_rows.reference import quantize_rows


def normed(
    rows: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, norm: str
) -> torch.Tensor:
    """Each row after the model's final norm."""
    if norm == "none":
        return rows
    centred = rows if norm == "rms" else rows - rows.mean(1, keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    scaled = unit if weight is None else unit * weight.to(rows.dtype)
    return scaled if bias is None else scaled + bias.to(rows.dtype)


def pool_encode(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, normalize: bool, encoding: str, ranges: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The codes of each sequence's vector, and whether all of its values were finite."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows = hidden.to(wide) if residual is None else hidden.to(wide) + residual.to(wide)
    rows = normed(rows, norm_weight, norm_bias, eps, norm)
    vectors = pool_normalize(rows, offsets, pooling, dimensions, normalize)
    if sequences is not None:
        vectors = vectors[sequences.long()]
    return quantize_rows(vectors, encoding, ranges), torch.isfinite(vectors).all(1)
