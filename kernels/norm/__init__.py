"""Residual and LayerNorm in one pass: LayerNorm(x + residual) · weight + bias, row by row.

Shape key: T tokens, H hidden size.

x [T, H] float32 or bfloat16, residual [T, H] of the same dtype or None -> [T, H] of that dtype, contiguous. weight [H]
and bias [H] are float32 or of x's dtype. eps is at least 0.

The sum x + residual stays in float32 (it is not rounded to bfloat16 in between), as do mean and variance, which are
taken in two passes: mean first, then the mean of the squared distances (the biased variance, as in torch). The result
is rounded once. A row's bits depend on that row alone.

``reference.py`` is the definition, ``csrc/norm.cpp`` the CPU kernel; a Triton kernel belongs in ``cuda.py``.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.norm import reference

SCHEMA = "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps) -> Tensor"


def _check(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> None:
    if x.dim() != 2 or x.size(1) == 0:
        checks.shape_error("x", x, "[T, H] with H at least 1")
    if residual is not None and residual.dtype != x.dtype:
        checks.dtype_error("residual", residual, f"{x.dtype} as x")
    if residual is not None and residual.shape != x.shape:
        checks.shape_error("residual", residual, f"{list(x.shape)} as x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype not in (torch.float32, x.dtype):
            checks.dtype_error(name, tensor, f"torch.float32 or {x.dtype} as x")
        if tensor.shape != x.shape[1:]:
            checks.shape_error(name, tensor, f"[H] with H = {x.size(1)}")
    if not eps >= 0:
        checks.value_error("eps", eps, "at least 0")


def _reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    _check(x, residual, weight, bias, eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)


def _fake(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    _check(x, residual, weight, bias, eps)
    return x.new_empty(x.size())


add_layer_norm = define("add_layer_norm", SCHEMA, reference=_reference, fake=_fake)
