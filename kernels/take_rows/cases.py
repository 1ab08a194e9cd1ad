"""Shapes of take_rows that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """``count`` rows of a table [size, width]."""

    name: str
    dtype: torch.dtype
    size: int
    width: int
    count: int


def make_inputs(case: Case, seed: int) -> Arguments:
    """A normal table and row numbers, the first and the last among them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(case.size, (case.count,), generator=generator)
    rows[:1], rows[-1:] = case.size - 1, 0
    return torch.randn(case.size, case.width, generator=generator).to(case.dtype), rows


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations): rows are read and written once, nothing is computed."""
    return case.count * (2 * case.width * case.dtype.itemsize + 8), 0


def tolerance(_: Case) -> tuple[float, float]:
    """(rtol, atol): a copy is exact."""
    return 0.0, 0.0


CASES = tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, size, width, count)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for name, size, width, count in (
        ("one", 1, 1, 1),
        ("none", 5, 7, 0),
        ("odd", 33, 17, 100),
        ("many", 500, 384, 3000),
    )
)
BENCHMARK_CASES = tuple(Case(f"tokens_T{count}_H384", torch.bfloat16, 30522, 384, count) for count in (512, 4096))
