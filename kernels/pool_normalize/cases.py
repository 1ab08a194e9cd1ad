"""Shapes of pool_normalize that tests and benchmarks walk."""

from dataclasses import dataclass, replace
from itertools import accumulate

import torch

Arguments = tuple[torch.Tensor, torch.Tensor, str, int, bool]


@dataclass(frozen=True, slots=True)
class Case:
    """lengths holds the tokens of each sequence."""

    name: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    width: int
    pooling: str
    dimensions: int
    normalize: bool = True

    @property
    def bytes(self) -> int:
        """Read once; the result is small beside it."""
        rows = sum(self.lengths) if self.pooling == "mean" else len(self.lengths)
        return rows * self.dimensions * self.dtype.itemsize


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal states."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(case.lengths), case.width, generator=generator).to(case.dtype)
    offsets = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32)
    return hidden, offsets, case.pooling, case.dimensions, case.normalize


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: states of 16 bits are exact in float32, and sums of up to a few hundred values near
    one are good to about 1e-6 of their largest partial sum; the mean divides that by the length again.
    """
    return 2e-6, 1e-6


_SHAPES = (
    Case("one_token", torch.float32, (1,), 1, "mean", 1, True),
    Case("mean", torch.float32, (1, 63, 100, 7), 384, "mean", 384, True),
    Case("mean_cut", torch.float32, (5, 1, 300), 384, "mean", 100, True),
    Case("mean_raw", torch.float32, (63, 2), 100, "mean", 63, False),
    Case("cls", torch.float32, (1, 63, 100), 100, "cls", 100, True),
    Case("cls_raw", torch.float32, (3, 1, 8), 768, "cls", 256, False),
    Case("last", torch.float32, (1, 63, 100), 63, "last", 31, True),
    Case("no_sequences", torch.float32, (), 16, "mean", 16, True),
    Case("many", torch.float32, tuple(1 + i % 9 for i in range(100)), 40, "mean", 33, True),
)
CASES: tuple[Case, ...] = tuple(
    replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for case in _SHAPES
)
TRITON_CASES: tuple[Case, ...] = tuple(case for case in CASES if len(case.lengths) < 100)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, lengths, 384, pooling, 384)
    for dtype in (torch.float32, torch.bfloat16)
    for name, lengths, pooling in (
        ("mean_T2048", (112,) * 18 + (32,), "mean"),
        ("mean_T512", (8, 12, 16, 20, 8) * 8, "mean"),
        ("last_T2048", (112,) * 18 + (32,), "last"),
    )
)
COMPILE_CASES: tuple[Case, ...] = (
    Case("H384_mean", torch.bfloat16, (32,) * 4, 384, "mean", 384),
    Case("H1024_cut_last", torch.float16, (32,) * 4, 1024, "last", 256),
    Case("H8192_mean", torch.float32, (32,) * 4, 8192, "mean", 8192),
)
