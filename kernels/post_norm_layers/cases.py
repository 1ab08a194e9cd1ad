"""Shapes of post_norm_layers that tests and benchmarks walk: uneven lengths, mixed ranks, base rows, last adapter."""

from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import torch

Arguments = tuple[
    torch.Tensor, torch.Tensor, int, float, float, str, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor],
    torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor, list[torch.Tensor],
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """sequences holds (tokens, slot) of each; ranks one rank for each slot, of all its slices."""

    name: str
    dtype: torch.dtype
    hidden: int
    inner: int
    num_heads: int
    sequences: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...] = (16, 0, 3, 40)
    activation: str = "gelu"
    num_layers: int = 1

    @property
    def rows(self) -> int:
        """T."""
        return sum(rows for rows, _ in self.sequences)


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal arguments, scaled so that what each step gives has a variance near one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    hidden, inner = case.hidden, case.inner
    shapes = [(3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)]
    factors, end, adapters = [normal(3)], 3, []
    for (out, depth), num_slices in zip(shapes * case.num_layers, (3, 1, 1, 1) * case.num_layers, strict=True):
        table = torch.zeros(len(case.ranks), num_slices, 3, dtype=torch.int64)
        for slot, rank in enumerate(case.ranks):
            for piece in range(num_slices):
                width = out // num_slices
                table[slot, piece] = torch.tensor([end, end + rank * depth, rank])
                factors += [normal(rank * depth) / depth**0.5, normal(rank * width) * 0.3 / max(rank, 1) ** 0.5]
                end += rank * (depth + width)
        adapters.append(table)
    runs = [(slot, sum(tokens for tokens, _ in run)) for slot, run in groupby(case.sequences, lambda each: each[1])]
    return (
        normal(case.rows, hidden).to(case.dtype),
        torch.tensor([0, *accumulate(tokens for tokens, _ in case.sequences)], dtype=torch.int32),
        case.num_heads,
        (hidden // case.num_heads) ** -0.5,
        1e-5,
        case.activation,
        [(normal(*shape) / shape[1] ** 0.5).to(case.dtype) for shape in shapes * case.num_layers],
        [normal(out).to(case.dtype) for out, _ in shapes * case.num_layers],
        [normal(hidden).to(case.dtype) for _ in range(4 * case.num_layers)],
        torch.cat(factors).to(case.dtype),
        adapters,
        torch.tensor([0, *accumulate(tokens for _, tokens in runs)], dtype=torch.int32),
        torch.tensor([slot for slot, _ in runs], dtype=torch.int32),
        [],
    )


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least: x and y once, the weights once; the four products and attention's two."""
    weights = case.num_layers * case.hidden * (4 * case.hidden + 2 * case.inner)
    scores = case.num_layers * sum(tokens * tokens for tokens, _ in case.sequences)
    operands = 2 * case.rows * case.hidden + weights
    return operands * case.dtype.itemsize, 2 * case.rows * weights + 4 * scores * case.hidden


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64, of values of a variance near one behind a LayerNorm.

    In 16 bits each of five steps between x and y is rounded, and what a step rounds the next multiplies and sums; so
    does a layer with what the last one rounded.
    """
    if case.dtype == torch.float32:
        return 2e-5, 5e-5 * case.num_layers
    return (0.0, (0.12 if case.dtype == torch.bfloat16 else 0.015) * case.num_layers)


_BASE, _LAST = -1, 3
_SMALL = Case("", torch.float32, 64, 160, 4, ((5, 0), (1, 0), (17, _BASE), (40, 1), (3, _LAST)))
_SHAPES = (
    replace(_SMALL, name="small"),
    replace(_SMALL, name="one_row", sequences=((1, _LAST),)),
    replace(_SMALL, name="no_rows", sequences=((0, 0),)),
    replace(_SMALL, name="empty_between", sequences=((4, 0), (0, 0), (9, 2))),
    replace(_SMALL, name="relu", activation="relu"),
    replace(_SMALL, name="gelu_tanh", activation="gelu_tanh"),
    replace(_SMALL, name="silu", activation="silu"),
    replace(_SMALL, name="odd_widths", hidden=96, inner=200, num_heads=6),
    replace(_SMALL, name="many_short", hidden=128, sequences=tuple((1 + 7 * i % 31, i // 20 - 1) for i in range(100))),
    replace(_SMALL, name="three_layers", num_layers=3),
    replace(_SMALL, name="uneven", hidden=128, inner=256, sequences=((300, _BASE), (2, _BASE), (513, 0), (70, _LAST))),
    replace(_SMALL, name="many_short_two_layers", hidden=128, num_layers=2, sequences=((9, 0), (30, 1)) * 40),
    Case("minilm", torch.float32, 384, 1536, 12, ((112, 0), (97, 0), (130, 1), (12, 2), (150, _LAST), (55, _LAST))),
)
CASES: tuple[Case, ...] = (
    *(
        replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for case in _SHAPES
    ),
    replace(_SMALL, name="small_float16", dtype=torch.float16),
)
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(
        f"{name}_{kind}",
        torch.bfloat16,
        384,
        1536,
        12,
        tuple((tokens, slot) for slot in slots for _ in range(count)),
        (16,) * 4,
    )
    for name, tokens, count in (("short", 12, 60), ("long", 112, 8))
    for kind, slots in (("base", (_BASE,) * 4), ("mixed", tuple(range(4))))
)
