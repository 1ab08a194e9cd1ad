"""Shapes of lora_matmul that tests and benchmarks walk: odd sizes, mixed ranks, base rows between adapters."""

from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import prod

import torch

from embedmux.kernels.lora_matmul import ACTIVATIONS, GATED, model

Arguments = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    list[int],
    str,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
]


@dataclass(frozen=True, slots=True)
class Case:
    """ranks holds one row a slot and in it one rank a slice; segments holds (rows, slot) pairs.

    merged, scaled and biased name the slots whose adapters bring a weight, a column scale or a bias of their own. What
    lies in arena begins at multiples of alignment elements, the first at 3 or behind.
    """

    name: str
    dtype: torch.dtype
    inner: int
    slices: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]
    segments: tuple[tuple[int, int], ...]
    bias: bool = True
    activation: str = "none"
    merged: tuple[int, ...] = ()
    scaled: tuple[int, ...] = ()
    biased: tuple[int, ...] = ()
    alignment: int = 1

    @property
    def rows(self) -> int:
        """T."""
        return sum(rows for rows, _ in self.segments)

    @property
    def columns(self) -> int:
        """N."""
        return sum(self.slices)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the base product; the low-rank part is what the benchmark sets beside it."""
        return 2 * self.rows * self.inner * self.columns


def make_inputs(case: Case, seed: int) -> Arguments:
    """Fresh normal arguments of the op, scaled so that base and low-rank part of y both have a variance near one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    factors, end = [normal(3)], 3

    def place(*shape: int, scale: float) -> int:
        nonlocal end
        start = end + -end % case.alignment
        factors.extend((torch.zeros(start - end), normal(prod(shape)) * scale))
        end = start + prod(shape)
        return start

    adapters = torch.zeros(len(case.ranks), len(case.slices), 3, dtype=torch.int64)
    for slot, ranks in enumerate(case.ranks):
        for piece, (rank, width) in enumerate(zip(ranks, case.slices, strict=True)):
            a = place(rank, case.inner, scale=case.inner**-0.5)
            adapters[slot, piece] = torch.tensor([a, place(rank, width, scale=max(rank, 1) ** -0.5), rank])
    offsets = [0, *accumulate(rows for rows, _ in case.segments)]
    overrides, columns = torch.full_like(adapters, -1), [normal(5)]
    for slot, (piece, width) in product(range(len(case.ranks)), enumerate(case.slices)):
        if slot in case.merged:
            overrides[slot, piece, 0] = place(width, case.inner, scale=case.inner**-0.5)
        for field, slots in ((1, case.scaled), (2, case.biased)):
            if slot in slots:
                overrides[slot, piece, field] = sum(map(len, columns))
                columns.append(normal(width))
    has_overrides = bool(case.merged or case.scaled or case.biased)
    return (
        normal(case.rows, case.inner).to(case.dtype),
        (normal(case.columns, case.inner) / case.inner**0.5).to(case.dtype),
        normal(case.columns).to(case.dtype) if case.bias else None,
        torch.cat(factors).to(case.dtype),
        adapters,
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor([slot for _, slot in case.segments], dtype=torch.int32),
        list(case.slices),
        case.activation,
        None,
        overrides if has_overrides else None,
        torch.cat(columns) if has_overrides else None,
    )


def cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) at least: operands, the factors in use and y once; both products, at exact ranks."""
    operands = case.rows * case.inner + case.columns * (case.inner + case.bias)
    operands += case.rows * case.columns // (2 if case.activation in GATED else 1)
    operations = case.flops
    for slot, ranks in enumerate(case.ranks):
        rows = sum(rows for rows, used in case.segments if used == slot)
        factors = sum(rank * (case.inner + width) for rank, width in zip(ranks, case.slices, strict=True))
        operands += factors if rows else 0
        operations += 2 * rows * factors
    return operands * case.dtype.itemsize, operations


def kernel_cost(case: Case) -> tuple[int, int]:
    """(bytes, operations) of the Triton design that the layer's shape chooses, as ``model.py`` counts them."""
    gated, size, least = case.activation in GATED, case.dtype.itemsize, cost(case)
    used = {slot for rows, slot in case.segments if rows and slot >= 0}
    rank = max((rank for slot in used for rank in case.ranks[slot]), default=0)
    shape = model.Shape(case.rows, case.inner, case.slices, rank, len(used), size, gated)
    design = "recompute" if model.recomputes(case.inner, case.slices, size, gated) else "extend"
    found = model.cost(shape, design if rank else "base")
    return max(int(found.bytes), least[0]), max(int(found.flops), least[1])


def tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64."""
    if case.dtype == torch.bfloat16:
        # One rounding of y to 8 bits is 2^-9 of it; A x keeps 16 bits, so the low-rank part adds nothing visible.
        return 4.1e-3, 1e-4
    if case.dtype == torch.float16:
        return 5.1e-4, 1e-4
    # Sums of up to 4,096 products of size 1 / sqrt(K) in float32, in one order or another.
    return 2e-6, 4e-6


def amx_tolerance(case: Case) -> tuple[float, float]:
    """(rtol, atol) against float64 of the AMX kernel, which alone rounds A x to 8 bits, at ranks above 16.

    That is an error of up to 2^-9 in each value of A x, about 0.001 in their sum, whose variance is one, and eight
    times that in the worst of a case's values; what a column scale or a gate multiplies by stretches it up to thrice.
    """
    if case.dtype == torch.bfloat16 and max((rank for ranks in case.ranks for rank in ranks), default=0) > 16:
        return 4.1e-3, 2.5e-2 if case.scaled or case.activation in GATED else 1e-2
    return tolerance(case)


QKV, ODD_QKV = (384, 384, 384), (100, 33, 65)
_SHAPES: tuple[
    tuple[str, int, tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...], bool, str], ...
] = (
    ("one_row", 64, (63,), ((7,),), ((1, 0),), True, "none"),
    ("one_base_row_deep", 1536, (384,), ((16,),), ((1, -1),), True, "gelu"),
    ("two_rows_two_slots", 100, (33,), ((1,), (12,)), ((1, 1), (1, 0)), False, "gelu"),
    ("base_rows_in_the_middle", 384, (100,), ((16,), (7,), (40,)), ((20, 0), (13, -1), (30, 2)), True, "gelu"),
    (
        "slices_across_panels",
        100,
        ODD_QKV,
        ((12, 1, 7), (0, 16, 0), (33, 0, 5)),
        ((37, 1), (40, -1), (23, 2)),
        True,
        "none",
    ),
    ("last_slot_and_empty_segment", 96, (31,), ((3,), (4,), (256,)), ((63, 2), (0, 0), (37, -1)), False, "none"),
    (
        "many_short_segments",
        64,
        (48, 16),
        ((8, 2), (1, 0), (17, 3)),
        tuple((1 + i % 3, i % 4 - 1) for i in range(50)),
        True,
        "none",
    ),
    ("no_adapter", 200, (129,), ((4,),), ((100, -1),), True, "none"),
    ("one_adapter_of_full_width", 384, QKV, ((16, 16, 16), (8, 8, 8)), ((300, 1),), True, "none"),
)
CASES: tuple[Case, ...] = tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, inner, slices, ranks, segments, bias, activation)
    for dtype in (torch.float32, torch.bfloat16)
    for name, inner, slices, ranks, segments, bias, activation in _SHAPES
)

# Batches as servers see them, over slots of very unequal ranks; -1 and the last slot are in every mix of several.
MIXED_RANKS = ((3, 17), (0, 1), (64, 8), (16, 16), (33, 300))
MIXES: dict[str, tuple[tuple[int, int], ...]] = {
    "identical": ((30, 2), (35, 2), (25, 2)),
    "distinct": ((9, 4), (16, 0), (1, -1), (23, 1), (40, 2), (12, 3)),
    "uniform": ((20, 1), (20, 4), (20, -1), (20, 3)),
    "zipf": ((48, 0), (24, 4), (16, -1), (12, 2)),
    "skewed": ((70, 4), (0, 2), (1, 1), (1, -1), (1, 0)),
}
CASES += tuple(
    Case(f"{name}_{str(dtype).removeprefix('torch.')}", dtype, 72, (70, 37), MIXED_RANKS, segments)
    for dtype in (torch.float32, torch.bfloat16)
    for name, segments in MIXES.items()
)

_GATED = Case("", torch.float32, 96, (50, 50), ((7, 16), (0, 4), (33, 1)), ((20, 2), (13, -1), (0, 1), (30, 0), (2, 1)))
# What adapters replace, every activation, and float16.
CASES += tuple(
    replace(case, name=f"{case.name}_{str(dtype).removeprefix('torch.')}", dtype=dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for case in (
        replace(_GATED, name="overrides_all", merged=(2,), scaled=(0, 2), biased=(1, 2)),
        replace(_GATED, name="overrides_gelu", merged=(0, 1), biased=(0,), activation="gelu", bias=False),
        *(replace(_GATED, name=f"act_{name}", scaled=(0,), activation=name) for name in ACTIVATIONS[1:]),
        replace(_GATED, name="halves_of_whole_panels", slices=(96, 96), activation="swiglu", merged=(1,), scaled=(0,)),
    )
)
CASES += tuple(
    replace(case, name=case.name.replace("float32", "float16"), dtype=torch.float16)
    for case in CASES
    if case.dtype == torch.float32
)
# What a Triton interpreter gets through in reasonable time: every shape in float32, a choice of them in half width. The
# GPU loads whole vectors from the arena, so what lies there is aligned as the server's arena aligns it.
_HALF = (
    "base_rows_in_the_middle",
    "slices_across",
    "last_slot",
    "overrides_all",
    "act_gelu_tanh",
    "act_geglu_b",
    "act_sw",
)
TRITON_CASES: tuple[Case, ...] = tuple(
    replace(case, segments=case.segments[:20], alignment=64 // case.dtype.itemsize)
    for case in CASES
    if case.rows <= 130 and case.ranks != MIXED_RANKS and (case.dtype == torch.float32 or case.name.startswith(_HALF))
)
# (K, slices) of the linears of small encoders; four adapters of rank 16 in equal parts.
_LINEARS = ((384, QKV), (384, (384,)), (384, (1536,)), (1536, (384,)), (768, (3072,)), (1024, (3072,)))
BENCHMARK_CASES: tuple[Case, ...] = tuple(
    Case(
        f"T{rows}_K{inner}_N{sum(slices)}_{str(dtype).removeprefix('torch.')}",
        dtype,
        inner,
        slices,
        ((16,) * len(slices),) * 4,
        tuple((rows // 4, slot) for slot in range(4)),
    )
    for dtype in (torch.float32, torch.bfloat16)
    for rows in (512, 2048)
    for inner, slices in _LINEARS
)

# The linears of encoders of width 384, 768 and 1024 as a server runs them, with and without what adapters replace.
_GATE_UP, _GROUPED = (3072, 3072), (2048, 1024, 1024)
_SERVED: tuple[tuple[int, tuple[int, ...], str, bool], ...] = (
    (384, QKV, "none", False),
    (384, (384,), "none", False),
    (384, (1536,), "gelu", False),
    (1536, (384,), "none", True),
    (768, (768, 768, 768), "none", True),
    (768, (768,), "none", False),
    (768, (3072,), "gelu", False),
    (768, _GATE_UP, "geglu", False),
    (3072, (768,), "none", False),
    (1024, _GROUPED, "none", False),
    (1024, _GATE_UP, "swiglu", True),
    (3072, (1024,), "none", False),
)
COMPILE_CASES: tuple[Case, ...] = tuple(
    Case(
        f"K{inner}_N{'_'.join(map(str, slices))}_{activation}{'_own' * own}_{str(dtype).removeprefix('torch.')}",
        dtype,
        inner,
        slices,
        ((64,) * len(slices), (8,) * len(slices)),
        ((40, 0), (9, -1), (15, 1)),
        activation=activation,
        biased=(0, 1) if own else (),
        alignment=64 // dtype.itemsize,
    )
    for inner, slices, activation, own in _SERVED
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
)
