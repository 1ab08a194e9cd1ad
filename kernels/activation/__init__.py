"""A gated activation on its own: act(gate) · up, element by element.

Shape key: T rows (tokens), I inner width.

x [T, 2 I] float32, bfloat16 or float16, gate in the first I columns and up in the last -> [T, I] of that dtype,
contiguous. The rows of x may be strided. kind is "swiglu" (silu), "geglu" (the exact GELU, by erf) or "geglu_tanh": the
names and numbers of ``lora_matmul``'s epilogue, which computes the same without this pass wherever the linear before it
is its own. Computed in float32, rounded once. A value's bits depend on its two arguments alone.

``reference.py`` is the definition, ``csrc/activation.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.activation import reference
from embedmux.kernels.library import define
from embedmux.kernels.lora_matmul import GATED

SCHEMA = "(Tensor x, str kind) -> Tensor"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # float64 is the tests' oracle


def check(x: torch.Tensor, kind: str) -> None:
    """What can be told from shapes and dtypes alone."""
    if x.dtype not in DTYPES:
        checks.dtype_error("x", x, "torch.float32, torch.bfloat16 or torch.float16")
    if x.dim() != 2 or x.size(1) == 0 or x.size(1) % 2 != 0:
        checks.shape_error("x", x, "[T, 2 I] with I at least 1")
    if kind not in GATED:
        checks.value_error("kind", kind, f"one of {', '.join(GATED)}")


def _reference(x: torch.Tensor, kind: str) -> torch.Tensor:
    check(x, kind)
    return reference.gated_activation(x, kind)


def _fake(x: torch.Tensor, kind: str) -> torch.Tensor:
    check(x, kind)
    return x.new_empty(x.size(0), x.size(1) // 2)


gated_activation = define("gated_activation", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
