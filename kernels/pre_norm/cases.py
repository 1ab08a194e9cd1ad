"""Shapes of pre_norm that tests and benchmarks walk; arguments and tolerances are those of add_layer_norm."""

from dataclasses import dataclass, replace

import torch

from embedmux.kernels.norm import cases as norm_cases
from embedmux.kernels.norm.cases import named


@dataclass(frozen=True, slots=True)
class Case(norm_cases.Case):
    """A case of add_layer_norm and the kind of norm."""

    kind: str = "rms"

    @property
    def bytes(self) -> int:
        """Read and written once."""
        return self.rows * self.width * self.dtype.itemsize * (4 if self.residual else 3)


def make_inputs(
    case: Case, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, float, str]:
    """Fresh normal arguments."""
    return *norm_cases.make_inputs(case, seed), case.kind


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64; the sum is closer than the norm."""
    return norm_cases.tolerance(case)


_SHAPES = (
    Case("one_value", torch.float32, 1, 1, bias=False),
    Case("odd", torch.float32, 63, 100, bias=False),
    Case("no_residual", torch.float32, 50, 63, residual=False, bias=False),
    Case("no_rows", torch.float32, 0, 16, bias=False),
    Case("bias", torch.float32, 17, 384),
)
CASES: tuple[Case, ...] = (
    *(named(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in _SHAPES),
    *(replace(named(case, torch.bfloat16), name=f"layer_{case.name}", kind="layer") for case in _SHAPES),
    Case("odd_float16", torch.float16, 63, 100, bias=False),
    Case("wide", torch.float32, 9, 1027, bias=False),
    Case("layer_far_from_zero", torch.float32, 20, 384, offset=100.0, kind="layer"),
    Case("bfloat16_weights", torch.bfloat16, 40, 768, weight_dtype=torch.bfloat16, bias=False),
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{kind}_T2048_H{width}_{str(dtype).removeprefix('torch.')}", dtype, 2048, width, bias=False, kind=kind)
    for kind in ("rms", "layer")
    for dtype in (torch.float32, torch.bfloat16)
    for width in (384, 1024)
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(f"production_{kind}_H{width}_{str(dtype).removeprefix('torch.')}", dtype, 512, width, True, dtype, bias=False,
         kind=kind)
    for kind, widths in (("rms", (768, 1024, 2560, 4096)), ("layer", (768,)))
    for width in widths
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
)  # fmt: skip
