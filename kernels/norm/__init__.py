"""Residual and LayerNorm in one pass: LayerNorm(x + residual) · weight + bias, row by row.

Shape key: T tokens, H hidden size.

x [T, H] float32, bfloat16 or float16, residual [T, H] of the same dtype or None -> [T, H] of that dtype, contiguous.
weight [H] and bias [H] are float32 or of x's dtype; bias may be None. eps is at least 0.

The sum x + residual stays in float32 (it is not rounded in between), as do mean and variance, which are taken in two
passes: mean first, then the mean of the squared distances (the biased variance, as in torch). The result is rounded
once. A row's bits depend on that row alone.

This is the norm behind a block (BERT) and the norm without a block before it. Where the next block adds to the sum
(pre-norm models), or for RMSNorm, see ``kernels/pre_norm``.

``reference.py`` is the definition, ``csrc/norm.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.norm import reference

SCHEMA = "(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps) -> Tensor"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # float64 is the tests' oracle


def check(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> None:
    """What add_layer_norm and pre_norm ask of their arguments."""
    if x.dtype not in DTYPES:
        checks.dtype_error("x", x, "torch.float32, torch.bfloat16 or torch.float16")
    if x.dim() != 2 or x.size(1) == 0:
        checks.shape_error("x", x, "[T, H] with H at least 1")
    if residual is not None and residual.dtype != x.dtype:
        checks.dtype_error("residual", residual, f"{x.dtype} as x")
    if residual is not None and residual.shape != x.shape:
        checks.shape_error("residual", residual, f"{list(x.shape)} as x")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in (torch.float32, x.dtype):
            checks.dtype_error(name, tensor, f"torch.float32 or {x.dtype} as x")
        if tensor is not None and tensor.shape != x.shape[1:]:
            checks.shape_error(name, tensor, f"[H] with H = {x.size(1)}")
    if not eps >= 0:
        checks.value_error("eps", eps, "at least 0")


def _reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    check(x, residual, weight, bias, eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)


def _fake(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    check(x, residual, weight, bias, eps)
    return x.new_empty(x.size())


add_layer_norm = define("add_layer_norm", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
