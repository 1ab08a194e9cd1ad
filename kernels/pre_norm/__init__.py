"""Residual and norm of a pre-norm block in one pass: the sum that the next block adds to, and its LayerNorm or RMSNorm.

Shape key: T tokens, H hidden size.

x [T, H] float32, bfloat16 or float16, residual [T, H] of the same dtype or None -> (normed [T, H], sum [T, H]), both of
that dtype and contiguous. weight [H] and bias [H] are float32 or of x's dtype; bias may be None. eps is at least 0.

sum = x + residual, rounded to x's dtype: the residual of the next call. Without a residual it is a copy of x.
normed = norm(x + residual) · weight + bias, where the norm is taken of the sum in float32, before it is rounded, and is
rounded once itself. kind is "layer", LayerNorm as in ``kernels/norm``, or "rms": x / √(mean(x²) + eps) (Zhang and
Sennrich 2019). Models that multiply by 1 + weight (Gemma) add the one to the weight when they load it.

A row's bits depend on that row alone.

``reference.py`` is the definition, ``csrc/pre_norm.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.norm import check as check_norm
from embedmux.kernels.pre_norm import reference

KINDS = ("layer", "rms")
SCHEMA = "(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, str kind) -> (Tensor normed, Tensor sum)"


def check(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
) -> None:
    """What can be told from shapes, dtypes and plain numbers."""
    check_norm(x, residual, weight, bias, eps)
    if kind not in KINDS:
        checks.value_error("kind", kind, f"one of {', '.join(KINDS)}")


def _reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(x, residual, weight, bias, eps, kind)
    return reference.pre_norm(x, residual, weight, bias, eps, kind)


def _fake(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(x, residual, weight, bias, eps, kind)
    return x.new_empty(x.size()), x.new_empty(x.size())


pre_norm = define("pre_norm", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
