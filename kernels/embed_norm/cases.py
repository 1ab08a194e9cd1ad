"""Shapes of embed_norm that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]


@dataclass(frozen=True, slots=True)
class Case:
    """``count`` tokens of a vocabulary of ``size`` words, at ``positions`` places."""

    name: str
    dtype: torch.dtype
    size: int
    positions: int
    width: int
    count: int


def make_inputs(case: Case, seed: int) -> Arguments:
    """Normal tables and random rows of them, the first and the last among them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    def rows(size: int) -> torch.Tensor:
        found = torch.randint(size, (case.count,), generator=generator)
        found[:1], found[-1:] = size - 1, 0
        return found

    return (
        normal(case.size, case.width), rows(case.size), normal(case.positions, case.width), rows(case.positions),
        normal(case.width), normal(case.width), 1e-12,
    )  # fmt: skip


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations): two rows read and one written a token; the sum, two moments and the result."""
    return case.count * (3 * case.width * case.dtype.itemsize + 16), 8 * case.count * case.width


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: those of one rounding, and of float32 sums."""
    return {torch.float32: (2e-5, 2e-5), torch.bfloat16: (8e-3, 1e-4), torch.float16: (1e-3, 1e-4)}[case.dtype]


CASES = tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, size, positions, width, count)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for name, size, positions, width, count in (
        ("one", 1, 1, 8, 1),
        ("none", 5, 2, 7, 0),
        ("odd", 33, 9, 17, 101),
        ("whole", 70, 20, 64, 99),
        ("many", 500, 512, 384, 3000),
    )
)
BENCHMARK_CASES = tuple(Case(f"tokens_T{count}_H384", torch.bfloat16, 30522, 512, 384, count) for count in (512, 4096))
