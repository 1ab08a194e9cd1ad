"""Shapes of rope that tests and benchmarks walk."""

from dataclasses import dataclass, replace

import torch

Arguments = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor | None,
    float,
]


@dataclass(frozen=True, slots=True)
class Case:
    """q and k are views of one projection [T, (Hq + 2 Hkv) D], as a backbone has them, unless separate."""

    name: str
    dtype: torch.dtype
    rows: int
    q_heads: int
    k_heads: int
    size: int
    rotated: int
    normed: bool = False
    weight_dtype: torch.dtype = torch.float32
    separate: bool = False
    positions: int = 512

    @property
    def bytes(self) -> int:
        """Heads read and written once."""
        return self.rows * (self.q_heads + self.k_heads) * self.size * self.dtype.itemsize * 2


def angles(positions: int, half: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [positions, half] float32, taken of the angles in float64."""
    frequencies = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    turned = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return turned.cos().float(), turned.sin().float()


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal arguments; positions in no order, some more than once."""
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(case.rows, case.q_heads + 2 * case.k_heads, case.size, generator=generator).to(case.dtype)
    q, k = heads[:, : case.q_heads], heads[:, case.q_heads : case.q_heads + case.k_heads]
    if case.separate:
        q, k = q.clone(memory_format=torch.contiguous_format), k.clone(memory_format=torch.contiguous_format)
    places = torch.randint(case.positions, (case.rows,), generator=generator)
    cos, sin = angles(case.positions, case.rotated // 2, 1e4)
    weights = torch.randn(2, case.size, generator=generator).to(case.weight_dtype)
    q_weight, k_weight = weights if case.normed else (None, None)
    return q, k, places, cos, sin, q_weight, k_weight, 1e-6


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64: one rounding of a difference of products, each good to a few 1e-7."""
    rtol = {torch.float32: 1e-6, torch.bfloat16: 4.1e-3, torch.float16: 5.1e-4}[case.dtype]
    return rtol, 4e-6


_SHAPES = (
    Case("small", torch.float32, 13, 4, 2, 16, 16),
    Case("normed", torch.float32, 9, 4, 2, 128, 128, normed=True),
    Case("partial", torch.float32, 21, 3, 1, 64, 16),
    Case("partial_odd_normed", torch.float32, 7, 3, 3, 50, 22, normed=True),
    Case("odd_size", torch.float32, 6, 2, 1, 35, 30),
    Case("separate", torch.float32, 5, 6, 2, 64, 64, separate=True),
    Case("no_rows", torch.float32, 0, 2, 2, 16, 16, separate=True),
)
CASES: tuple[Case, ...] = (
    *(
        replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for case in _SHAPES
    ),
    Case("partial_odd_normed_float16", torch.float16, 7, 3, 3, 50, 22, normed=True, weight_dtype=torch.float16),
    Case("one_pair", torch.float32, 1, 1, 1, 2, 2, positions=1),
    Case("large_head", torch.bfloat16, 3, 3, 1, 256, 256, normed=True, weight_dtype=torch.bfloat16),
)
_MODELS = (
    Case("qwen3", torch.float32, 2048, 16, 8, 128, 128, normed=True),  # and Jina v5 small
    Case("modernbert", torch.float32, 2048, 12, 12, 64, 64),  # and EuroBERT, GTE, Nomic
    Case("small", torch.float32, 2048, 12, 12, 32, 32),
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    replace(case, name=f"{case.name}_T{case.rows}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
    for case in _MODELS
    for dtype in (torch.float32, torch.bfloat16)
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    replace(case, name=f"production_{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype, weight_dtype=dtype)
    for case in (
        *_MODELS,
        Case("gemma", torch.float32, 512, 3, 1, 256, 256, normed=True),
        Case("partial", torch.float32, 512, 12, 12, 64, 32),
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
)
