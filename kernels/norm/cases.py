"""Shapes of add_layer_norm that tests and benchmarks walk."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

Arguments = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, float]


@dataclass(frozen=True, slots=True)
class Case:
    """offset is added to every value of x: rows far from zero are where a one-pass variance would fail."""

    name: str
    dtype: torch.dtype
    rows: int
    width: int
    residual: bool = True
    weight_dtype: torch.dtype = torch.float32
    offset: float = 0.0
    bias: bool = True

    @property
    def bytes(self) -> int:
        """Read and written once."""
        return self.rows * self.width * self.dtype.itemsize * (3 if self.residual else 2)


AnyCase = TypeVar("AnyCase", bound=Case)


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal arguments."""
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(case.rows, case.width, generator=generator).to(case.dtype) for _ in range(2))
    weight, bias = (torch.randn(case.width, generator=generator).to(case.weight_dtype) for _ in range(2))
    return x + case.offset, residual if case.residual else None, weight, bias if case.bias else None, 1e-5


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations): add, mean, squared distances, scale and shift."""
    weights = 2 * case.width * case.weight_dtype.itemsize
    return case.bytes + weights, 8 * case.rows * case.width


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64."""
    if case.dtype == torch.float32:
        # float32 holds x to 6e-8 of its size, and a row near `offset` keeps that error when it is centred.
        return 2e-6, 4e-6 + 4e-7 * abs(case.offset)
    # One rounding at the end, 2^-9 or 2^-11 of the result; it can be a small difference of larger float32 terms.
    return (4.1e-3 if case.dtype == torch.bfloat16 else 5.1e-4), 1e-5


def named(case: AnyCase, dtype: torch.dtype) -> AnyCase:
    """The case in another dtype, its name saying so."""
    return replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)


_SHAPES = (
    Case("one_value", torch.float32, 1, 1, True, torch.float32, 0.0),
    Case("odd", torch.float32, 63, 100, True, torch.float32, 0.0),
    Case("no_residual", torch.float32, 100, 63, False, torch.float32, 0.0),
    Case("no_rows", torch.float32, 0, 16, True, torch.float32, 0.0),
    Case("small_encoder", torch.float32, 257, 384, True, torch.float32, 0.0),
    Case("wide", torch.float32, 33, 1027, True, torch.float32, 0.0),
    Case("far_from_zero", torch.float32, 20, 384, True, torch.float32, 100.0),
)
CASES: tuple[Case, ...] = (
    *(named(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in _SHAPES),
    Case("bfloat16_weights", torch.bfloat16, 40, 384, weight_dtype=torch.bfloat16),
    Case("no_bias", torch.float32, 21, 100, bias=False),
    Case("no_bias_bfloat16", torch.bfloat16, 21, 384, residual=False, bias=False),
    Case("odd_float16", torch.float16, 63, 100),
    Case("float16_weights", torch.float16, 40, 384, weight_dtype=torch.float16, bias=False),
)
TRITON_CASES: tuple[Case, ...] = tuple(case for case in CASES if case.rows <= 100)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"T{rows}_H{width}_{str(dtype).removeprefix('torch.')}", dtype, rows, width)
    for dtype in (torch.float32, torch.bfloat16)
    for rows, width in ((512, 384), (2048, 384), (2048, 1024))
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(f"production_H{width}_{str(dtype).removeprefix('torch.')}", dtype, 512, width, weight_dtype=dtype)
    for width in (384, 768, 1024, 8192)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
)
