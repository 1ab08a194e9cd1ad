"""Shapes of quantize_rows that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, str, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Case:
    """rows x dimensions values to be written in an encoding."""

    name: str
    dtype: torch.dtype
    rows: int
    dimensions: int
    encoding: str

    @property
    def bytes(self) -> int:
        """Read once; what is written comes on top."""
        return self.rows * self.dimensions * 4


def make_inputs(case: Case, seed: int) -> Arguments:
    """Normal rows, a few of their values beyond the ranges; one dimension has an empty range."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(case.rows, case.dimensions, generator=generator)
    if case.encoding not in ("int8", "uint8"):
        return rows, case.encoding, None
    ranges = torch.stack((-2 - torch.rand(case.dimensions, generator=generator), torch.full((case.dimensions,), 2.5)))
    ranges[:, case.dimensions // 2] = 0.25
    return rows, case.encoding, ranges


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: a value within float32's reach of the edge of a bucket may fall to the other side,
    one code away. Everything else is exact.
    """
    return (0.0, 1.0) if case.encoding in ("int8", "uint8") else (0.0, 0.0)


ENCODINGS = ("float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary")
_SIZES = ((1, 1), (63, 100), (3, 7), (0, 8), (100, 384), (5, 1029))
CASES: tuple[Case, ...] = tuple(
    Case(f"{encoding}_{rows}x{dimensions}", torch.float32, rows, dimensions, encoding)
    for encoding in ENCODINGS
    for rows, dimensions in _SIZES
)
TRITON_CASES: tuple[Case, ...] = tuple(case for case in CASES if case.rows < 60)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{encoding}_{rows}x384", torch.float32, rows, 384, encoding)
    for encoding in ENCODINGS[1:]
    for rows in (64, 1024)
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(f"{encoding}_4x{dimensions}", torch.float32, 4, dimensions, encoding)
    for encoding in ENCODINGS
    for dimensions in (384, 4096)
)
