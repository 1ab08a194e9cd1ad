"""Shapes of rescore that tests and benchmarks walk."""

from dataclasses import dataclass, replace

import torch

from embedmux.kernels.similarity import cases as vectors

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, str, torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Case(vectors.Case):
    """``candidates`` of each query among the rows, some of them named twice, about one in eight missing."""

    candidates: int = 1


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh vectors, candidates, scales and offsets."""
    queries, rows, kind, scale, offset = vectors.make_inputs(case, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (case.queries, case.candidates)
    named = torch.randint(-1, case.rows, shape, generator=generator)
    missing = torch.rand(shape, generator=generator) < 1 / 8
    return queries, rows, named.where(~missing, -1), kind, scale, offset


def _gathered(case: Case) -> Case:
    """The same with as many rows as are read for one query."""
    return replace(case, queries=1, rows=case.candidates)


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least: no row is in the cache."""
    bytes_, operations = vectors.vector_cost(_gathered(case))
    return case.queries * (bytes_ + 12 * case.candidates), case.queries * operations


def kernel_cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) of the Triton kernel."""
    bytes_, operations = vectors.tile_cost(_gathered(case))
    return case.queries * (bytes_ + 12 * case.candidates), case.queries * operations


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64."""
    return vectors.tolerance(case)


def _name(kind: str, *numbers: int) -> str:
    return f"{kind.replace(':', '_')}_{'x'.join(map(str, numbers))}"


_SIZES = ((3, 63, 100, 20), (9, 200, 384, 50), (3, 33, 1027, 7))
CASES: tuple[Case, ...] = (
    *(Case(_name(kind, *sizes), kind, *sizes[:3], candidates=sizes[3]) for kind in vectors.KINDS for sizes in _SIZES),
    Case("no_rows", "dot:float32", 5, 0, 16, candidates=3),
    Case("no_candidates", "int8", 5, 8, 16, candidates=0),
    Case("no_queries", "hamming", 0, 5, 16, candidates=3),
    Case("int8_scaled", "int8", 33, 100, 384, is_scaled=True, candidates=10),
    Case("float_int8_offset", "float_int8", 17, 100, 100, is_scaled=True, candidates=10),
)
TRITON_CASES = tuple(case for case in CASES if case.queries * case.candidates < 1000)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(_name(kind, *sizes), kind, *sizes[:3], kind in ("int8", "float_int8"), candidates=sizes[3])
    for kind in vectors.KINDS
    for sizes in ((1, 1_000_000, 384, 100), (64, 200_000, 1024, 400))
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(_name(kind, 64, 50_000, 384, 100), kind, 64, 50_000, 384, candidates=100) for kind in vectors.KINDS
)
