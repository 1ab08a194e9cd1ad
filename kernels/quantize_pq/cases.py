"""Shapes of quantize_pq that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """rows x (parts x width) values."""

    name: str
    dtype: torch.dtype
    rows: int
    parts: int
    width: int

    @property
    def flops(self) -> int:
        """Difference, product and sum for every value and centroid."""
        return 3 * 16 * self.rows * self.parts * self.width

    @property
    def bytes(self) -> int:
        """Rows read, codes written."""
        return self.rows * (4 * self.parts * self.width + self.parts // 2)


def make_inputs(case: Case, seed: int) -> Arguments:
    """Multiples of an eighth: float32 holds every distance exactly, ties are many, and codes can be told from wrong."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-16, 17, (case.rows, case.parts * case.width), generator=generator) / 8
    codebooks = torch.randint(-16, 17, (case.parts, 16, case.width), generator=generator) / 8
    return rows, codebooks


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least."""
    return case.bytes + 64 * case.parts * case.width, case.flops


def tolerance(case: Case) -> tuple[float, float]:
    """Codes are exact."""
    return 0.0, 0.0


def _case(rows: int, parts: int, width: int) -> Case:
    return Case(f"{rows}x{parts}x{width}", torch.float32, rows, parts, width)


CASES: tuple[Case, ...] = tuple(
    _case(*sizes) for sizes in ((1, 2, 1), (63, 6, 3), (100, 48, 8), (0, 4, 2), (2049, 2, 5), (17, 10, 33))
)
TRITON_CASES: tuple[Case, ...] = tuple(
    _case(*sizes) for sizes in ((1, 2, 1), (63, 6, 3), (70, 16, 8), (0, 4, 2), (5, 10, 33))
)
COMPILE_CASES: tuple[Case, ...] = (_case(4096, 48, 8), _case(4096, 96, 8), _case(4096, 128, 6), _case(64, 16, 64))
BENCHMARK_CASES: tuple[Case, ...] = (_case(64, 96, 4), _case(4096, 48, 16))
