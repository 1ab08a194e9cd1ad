"""Shapes of similarity_topk that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

from embedmux.kernels.similarity import cases as vectors

Arguments = tuple[torch.Tensor, torch.Tensor, str, int, torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Case(vectors.Case):
    """Vectors on a grid (exact scores, many ties, so that ids can be compared) and the number of rows wanted."""

    on_grid: bool = True
    k: int = 1


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh vectors, scales and offsets."""
    queries, rows, kind, scale, offset = vectors.make_inputs(case, seed)
    return queries, rows, kind, case.k, scale, offset


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least."""
    bytes_, operations = vectors.vector_cost(case)
    return bytes_ + 12 * case.queries * case.k, operations


def kernel_cost(case: Case) -> tuple[int, ...]:
    """(bytes, operations, operations of plain cores) of the Triton kernels.

    Up to 32 wanted: 256 programs each look at their tiles of 4096 scores, once to order them (8 operations a score) and
    once more (5) for every round, of which the t-th tile takes one more than its busiest query finds new rows there:
    about k / t. More wanted: scores are written, and sorted by a radix sort that reads and writes a float32 and an
    int64 in four passes.
    """
    bytes_, operations = vectors.tile_cost(case)
    if case.k > 32:
        return bytes_ + (8 + 4 * 2 * 12) * case.pairs, operations, 0
    queries = {"hamming": 8, "float_int8": 16, "float_binary": 16}.get(case.op_kind, 32)
    tiles = max(1, case.rows * queries // 4096)
    each = max(1, -(-tiles // 256))
    rounds = sum(1 + case.k / t + 3 * (case.k / t) ** 0.5 for t in range(1, each + 1))
    scores = 4096 * -(-case.queries // queries) * min(tiles, 256)
    return bytes_ + 16 * 256 * case.queries * case.k, operations, int(scores * (8 * each + 5 * rounds))


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64, of scores and, since it is far below 1, of ids."""
    return vectors.tolerance(case) if case.is_scaled and case.op_kind == "int8" else (0.0, 0.0)


def _name(kind: str, *numbers: int) -> str:
    return f"{kind.replace(':', '_')}_{'x'.join(map(str, numbers))}"


_SIZES = ((3, 63, 100, 63), (65, 300, 384, 10), (1, 1500, 384, 100), (4, 600, 8, 500))
CASES: tuple[Case, ...] = (
    *(Case(_name(kind, *sizes), kind, *sizes[:3], k=sizes[3]) for kind in vectors.KINDS for sizes in _SIZES),
    Case("no_queries", "dot:float32", 0, 5, 16, k=3),
    Case("int8_scaled", "int8", 33, 100, 384, is_scaled=True, k=10),
    Case("float_int8_offset", "float_int8", 17, 100, 100, is_scaled=True, k=10),
)
TRITON_CASES = tuple(case for case in CASES if case.pairs < 5000)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(_name(kind, *sizes), kind, *sizes[:3], kind in ("int8", "float_int8"), k=sizes[3])
    for kind in vectors.KINDS
    for sizes in ((1, 1_000_000, 384, 10), (64, 200_000, 384, 10), (64, 200_000, 1024, 100), (8, 200_000, 384, 4096))
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(_name(kind, queries, 50_000, 384), kind, queries, 50_000, 384, k=10)
    for kind in vectors.KINDS
    for queries in (1, 64)
)
