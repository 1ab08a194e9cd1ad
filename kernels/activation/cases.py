"""Shapes of gated_activation that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

from embedmux.kernels.lora_matmul import GATED


@dataclass(frozen=True, slots=True)
class Case:
    """scale spreads the values: large ones are where an exponential would overflow."""

    name: str
    dtype: torch.dtype
    rows: int
    width: int
    kind: str = "swiglu"
    scale: float = 3.0

    @property
    def bytes(self) -> int:
        """Read and written once."""
        return self.rows * self.width * self.dtype.itemsize * 3


def make_inputs(case: Case, seed: int) -> tuple[torch.Tensor, str]:
    """Fresh normal arguments."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.rows, 2 * case.width, generator=generator)
    x[:, : case.width] *= case.scale
    return x.to(case.dtype), case.kind


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: one rounding, after an activation good to a few 1e-7 of its argument."""
    rtol = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[case.dtype]
    return rtol, 1.5e-6


CASES: tuple[Case, ...] = (
    *(
        Case(f"{kind}_{name}_{str(dtype).removeprefix('torch.')}", dtype, rows, width, kind)
        for kind in GATED
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for name, rows, width in (("odd", 37, 101), ("even", 5, 256))
    ),
    Case("one_value", torch.float32, 1, 1),
    *(Case(f"{kind}_large", torch.float32, 11, 100, kind, 60.0) for kind in GATED),
    Case("no_rows", torch.bfloat16, 0, 16),
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{kind}_T2048_I{width}_{str(dtype).removeprefix('torch.')}", dtype, 2048, width, kind)
    for kind in GATED
    for dtype in (torch.float32, torch.bfloat16)
    for width in (384, 1024)
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(f"production_{kind}_I{width}_{str(dtype).removeprefix('torch.')}", dtype, 512, width, kind)
    for kind, width in (("swiglu", 3072), ("geglu", 1152), ("geglu_tanh", 1152))
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
)
