"""Shapes of pq_topk that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

from embedmux.kernels.pq_topk.reference import pack_pq

Arguments = tuple[torch.Tensor, torch.Tensor, int, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Case:
    """queries x rows of ``parts`` codes, the best ``k``; ``steps`` is how finely table entries differ."""

    name: str
    dtype: torch.dtype
    queries: int
    rows: int
    parts: int
    k: int
    packed: bool = True
    steps: int = 128

    @property
    def lookups(self) -> int:
        """Table entries added up."""
        return self.queries * self.rows * self.parts

    @property
    def bytes(self) -> int:
        """Codes read once."""
        return self.rows * self.parts // 2


def make_inputs(case: Case, seed: int) -> Arguments:
    """Whole numbers in tables: float32 holds every score exactly, and ties are many."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.queries, case.parts, 16)
    tables = torch.randint(-case.steps, case.steps + 1, shape, generator=generator) / 16
    codes = torch.randint(0, 256, (case.rows, case.parts // 2), generator=generator, dtype=torch.uint8)
    return tables, codes, case.k, pack_pq(codes) if case.packed else None


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least: codes, tables and results once, one addition for each entry looked up."""
    return case.bytes + case.queries * (64 * case.parts + 12 * case.k), case.lookups


def tolerance(case: Case) -> tuple[float, float]:
    """Scores and ids are exact."""
    return 0.0, 0.0


CASES: tuple[Case, ...] = (
    Case("one_row", torch.float32, 1, 1, 2, 1),
    Case("odd", torch.float32, 3, 63, 6, 63, packed=False),
    Case("one_column_ties", torch.float32, 11, 2049, 2, 10, steps=2),
    Case("no_queries", torch.float32, 0, 100, 4, 10),
    Case("filtered", torch.float32, 15, 5000, 48, 10),
    Case("filtered_not_packed", torch.float32, 9, 4801, 48, 10, packed=False),
    Case("equal_scores", torch.float32, 2, 3000, 10, 100, steps=0),
    Case("many_hits", torch.float32, 2, 3001, 24, 1000),
)
TRITON_CASES: tuple[Case, ...] = (
    Case("one_row", torch.float32, 1, 1, 2, 1),
    Case("odd", torch.float32, 3, 63, 6, 63, packed=False),
    Case("ties", torch.float32, 2, 2049, 2, 10, steps=2),
    Case("no_queries", torch.float32, 0, 100, 4, 10),
    Case("filtered", torch.float32, 3, 2500, 8, 10),
    Case("many_hits", torch.float32, 2, 1500, 4, 1000, packed=False),
    Case("many_hits_packed", torch.float32, 1, 200, 4, 100),
)
COMPILE_CASES: tuple[Case, ...] = (
    Case("best_10", torch.float32, 64, 200000, 48, 10),
    Case("best_100", torch.float32, 64, 200000, 48, 100, packed=False),
    Case("best_1000", torch.float32, 64, 200000, 96, 1000),
)
BENCHMARK_CASES: tuple[Case, ...] = (
    Case("Q64_n200000_M48_k10", torch.float32, 64, 200000, 48, 10),
    Case("Q1_n200000_M48_k100", torch.float32, 1, 200000, 48, 100),
)
