"""Queries for codes of calibrated ranges, so that scores of codes approximate the dot products of the floats.

quantize_rows writes code = clip(floor((x - start) / step), 0, 255) - 128, so x lies in a bucket whose middle is
(code + 128) · step + start + step / 2. A dot product with the middles is linear in the codes: each step goes into its
query dimension, everything constant into one offset a query. A dimension whose range is empty counts as constant: codes
of values beside it, in steps of 1, would be hundreds of times as coarse as the others.
"""

import torch

MAX_CODE = 127


def fold_ranges(queries: torch.Tensor, ranges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """queries [Q, D] and ranges [2, D] float32 -> (folded [Q, D], query_offset [Q]) for kind "float_int8"."""
    step = (ranges[1] - ranges[0]) / 255
    middles_of_zero = (128 + 0.5) * step + ranges[0]
    return queries * step, queries @ middles_of_zero


def quantize_queries(
    queries: torch.Tensor, ranges: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """queries [Q, D] float32 -> (codes [Q, D] int8, query_scale [Q], query_offset [Q] or None) for kind "int8".

    ranges [2, D] float32 are those the rows were quantised with. None: the rows are symmetric codes of a common step;
    multiply the scale by that step where scores must approximate those of the floats, and not only their order.
    Codes are symmetric, round(query · step / scale) with the scale that takes the greatest to 127; a query of zeros
    has scale 1.
    """
    folded, offset = (queries, None) if ranges is None else fold_ranges(queries, ranges)
    scale = folded.abs().amax(1) / MAX_CODE
    scale = scale.where(scale != 0, 1)
    return (folded / scale[:, None]).round().to(torch.int8), scale, offset
