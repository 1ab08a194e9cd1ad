"""Brute-force scores in plain torch: the definition that every faster kernel is compared with."""

import torch


def signs(codes: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Packed bits [m, B] -> +1 or -1, [m, width], the first in the highest bit."""
    shifts = torch.arange(7, -1, -1, device=codes.device, dtype=torch.uint8)
    bits = (codes[:, :, None] >> shifts & 1).flatten(1)[:, :width]
    return bits.to(dtype) * 2 - 1


def similarity(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> torch.Tensor:
    """Scores [Q, n], in float32, or in float64 where a float argument is float64."""
    if kind == "hamming":
        width = 8 * queries.size(1)
        left, right = (signs(codes, width, torch.float32) for codes in (queries, rows))
        return (left @ right.T - width) / 2
    if kind == "int8":
        dots = queries.double() @ rows.double().T  # exact
        scores = dots.float() if query_scale is None else dots.to(query_scale.dtype) * query_scale[:, None]
    else:
        wide = torch.promote_types(queries.dtype, torch.float32)
        right = signs(rows, queries.size(1), wide) if kind == "float_binary" else rows.to(wide)
        scores = queries.to(wide) @ right.T
    return scores if query_offset is None else scores + query_offset[:, None]
