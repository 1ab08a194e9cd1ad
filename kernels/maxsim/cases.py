"""Shapes of maxsim that tests and benchmarks walk."""

from dataclasses import dataclass

import torch

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """Token counts of the queries and of the documents."""

    name: str
    dtype: torch.dtype
    queries: tuple[int, ...]
    documents: tuple[int, ...]
    dimensions: int

    @property
    def flops(self) -> int:
        """Of the dot products."""
        return 2 * sum(self.queries) * sum(self.documents) * self.dimensions

    @property
    def bytes(self) -> int:
        """Documents read once."""
        return sum(self.documents) * self.dimensions * self.dtype.itemsize


def _tokens(counts: tuple[int, ...], case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    shape = sum(counts), case.dimensions
    if case.dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8), offsets
    return torch.randn(shape, generator=generator).to(case.dtype), offsets


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal tokens, or any int8."""
    generator = torch.Generator().manual_seed(seed)
    return (*_tokens(case.queries, case, generator), *_tokens(case.documents, case, generator))


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least."""
    queries = sum(case.queries) * case.dimensions * case.dtype.itemsize
    return case.bytes + queries + 4 * len(case.queries) * len(case.documents), case.flops


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: products of bfloat16 and float16 are exact in float32, whose sums err alike."""
    return (0.0, 0.0) if case.dtype == torch.int8 else (2e-6, 1e-6 * case.dimensions)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_UNEVEN = (1, 0, 63, 16, 100, 31, 33, 7, 0)
_SHAPES = (
    ("one_value", (1,), (1,), 1),
    ("uneven", (32, 1, 0, 17), _UNEVEN, 128),
    ("odd_dimensions", (5, 33), (3, 40, 17, 64), 63),
    ("long_documents", (40,), (2049, 300), 96),
    ("no_documents", (3, 4), (), 16),
    ("empty_documents", (3, 4), (0, 0), 16),
    ("no_queries", (), (5, 6), 16),
    ("many_dimensions", (9,), (20, 70), 1000),
)


def _named(name: str, dtype: torch.dtype, *rest: object) -> Case:
    return Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, *rest)  # type: ignore[arg-type]


CASES: tuple[Case, ...] = tuple(_named(name, dtype, *rest) for dtype in DTYPES for name, *rest in _SHAPES)
TRITON_CASES: tuple[Case, ...] = tuple(
    _named(name, dtype, *rest)
    for dtype in DTYPES
    for name, *rest in (
        ("uneven", (33, 1, 0), (1, 0, 63, 150), 128),
        ("odd_dimensions", (5,), (3, 17), 63),
        ("many_dimensions", (9,), (20,), 300),
        ("no_documents", (3, 4), (), 16),
    )
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    _named(f"D{dimensions}", dtype, (32,), (256,) * 20, dimensions)
    for dtype in DTYPES
    for dimensions in (64, 96, 128, 320)
)
BENCHMARK_CASES: tuple[Case, ...] = (
    _named("q32_d1000x256_D128", torch.bfloat16, (32,), (256,) * 1000, 128),
    _named("q32_d1000x256_D128", torch.int8, (32,), (256,) * 1000, 128),
    _named("q32_d200x256_D128", torch.float32, (32,), (256,) * 200, 128),
)
