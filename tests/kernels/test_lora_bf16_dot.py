"""The bfloat16 product of pairs (AVX512_BF16): exact shapes of its layout, float64's values, one order of sums."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import GATED, lora_matmul, pack_weight, reference
from embedmux.kernels.lora_matmul.cases import Arguments, Case, make_inputs, tolerance

LEVEL, PANEL, TILE, TASK = "avx512_bf16", 64, 6, 252  # columns of a panel, rows of a tile, rows of a task
ROWS = (1, 2, TILE - 1, TILE, TILE + 1, 4 * TILE + 1, TASK + 1, 2 * TASK + 7)
BASE = Case("base", torch.bfloat16, 100, (70,), ((0,),), ((1, -1),))


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """This instruction set, on AMX machines too."""
    if not ops.HAS_EXTENSION:
        pytest.skip("the layout belongs to the compiled kernel")
    torch.ops.embedmux.set_max_cpu_isa(LEVEL)
    if ops.cpu_isa() != LEVEL:
        torch.ops.embedmux.set_max_cpu_isa("amx")
        pytest.skip("this processor has no AVX512_BF16")
    yield
    torch.ops.embedmux.set_max_cpu_isa("amx")


def pack(arguments: Arguments) -> Arguments:
    """With the weight packed, and no weight beside it where nothing may read one."""
    x, weight, *described = arguments
    packed, overrides = pack_weight(weight), described[8]
    if overrides is None:
        weight = torch.full((), math.nan, dtype=weight.dtype).expand(weight.shape)
    return (x, weight, *described[:7], packed, *described[8:])  # type: ignore[return-value]


def take(arguments: Arguments, slots: list[int], rows: torch.Tensor) -> torch.Tensor:
    """The given rows, the slot of each in its place, in segments of equal slots."""
    runs = [i for i, slot in enumerate(slots) if i == 0 or slot != slots[i - 1]]
    offsets = torch.tensor([*runs, len(slots)], dtype=torch.int32)
    named = torch.tensor([slots[i] for i in runs], dtype=torch.int32)
    result: torch.Tensor = lora_matmul(arguments[0][rows], *arguments[1:5], offsets, named, *arguments[7:])
    return result


def exact(arguments: Arguments) -> torch.Tensor:
    """The reference on the same values in float64."""
    wide = [a.double() if isinstance(a, torch.Tensor) and i < 4 else a for i, a in enumerate(arguments)]
    return reference.lora_matmul(*wide[:9], None, *arguments[10:])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inner=st.integers(1, 300),
    slices=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    segments=st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 2)), min_size=1, max_size=8),
    ranks=st.lists(st.integers(0, 40), min_size=9, max_size=9),
    activation=st.sampled_from(("none", "gelu", "relu", "gelu_tanh", "swiglu", "geglu")),
    overrides=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_call_is_close_to_float64(
    inner: int,
    slices: list[int],
    segments: list[tuple[int, int]],
    ranks: list[int],
    activation: str,
    overrides: bool,
    seed: int,
) -> None:
    widths = (slices[0],) * 2 if activation in GATED else tuple(slices)
    count = len(widths)
    factors = tuple(tuple(ranks[slot * count : (slot + 1) * count]) for slot in range(3))
    case = replace(BASE, inner=inner, slices=widths, ranks=factors, segments=tuple(segments), activation=activation)
    if overrides:
        case = replace(case, merged=(1,), scaled=(0, 1), biased=(0, 2))
    arguments = make_inputs(case, seed)
    rtol, atol = tolerance(case)
    result = lora_matmul(*pack(arguments)).double()
    torch.testing.assert_close(result, exact(arguments), rtol=rtol, atol=atol * (3 if overrides else 1))


@pytest.mark.parametrize("inner", (1, 2, 63, 64, 385))
@pytest.mark.parametrize("columns", (1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL + 17))
@pytest.mark.parametrize("rows", (1, TILE, 4 * TILE + 1))
def test_whole_numbers_give_the_exact_product(rows: int, inner: int, columns: int) -> None:
    """Their sums stay below 2^24, so that only the result is rounded, whatever a pair's own rounding."""
    case = replace(BASE, inner=inner, slices=(columns,), segments=((rows, -1),))
    x, weight, bias, *rest = make_inputs(case, seed=rows)
    x, weight, bias = ((t * 7).round().clamp(-9, 9) if t is not None else None for t in (x, weight * inner**0.5, bias))
    assert x is not None and weight is not None and bias is not None
    expected = (x.double() @ weight.double().T + bias.double()).bfloat16()
    assert torch.equal(lora_matmul(*pack((x, weight, bias, *rest))), expected)


@pytest.mark.parametrize(
    "case",
    [
        replace(BASE, inner=inner, slices=slices, ranks=ranks, activation=activation)
        for (inner, slices, ranks), activation in product(
            (
                (384, (384,), ((16,), (7,), (40,))),
                (131, (100, 33, 65), ((12, 1, 7), (0, 16, 0), (33, 0, 5))),
                (77, (81, 81), ((3, 20), (8, 0), (1, 65))),
            ),
            ("none", "gelu"),
        )
    ]
    + [
        replace(BASE, inner=76, slices=(n, n), ranks=((9, 0), (4, 4), (0, 33)), activation="swiglu")
        for n in (50, 65, 128)
    ],
    ids=lambda case: f"{case.inner}_{case.columns}_{case.activation}",
)
@pytest.mark.parametrize("overrides", (False, True))
def test_row_has_the_same_bits_in_any_batch(case: Case, overrides: bool, threads: None) -> None:
    case = replace(case, segments=((ROWS[-1], -1),))
    if overrides:
        case = replace(case, merged=(1,), scaled=(0,), biased=(2,))
    arguments = pack(make_inputs(case, seed=5))
    torch.set_num_threads(1)
    everything = torch.arange(case.rows)
    expected = torch.stack([take(arguments, [slot] * case.rows, everything) for slot in range(3)] +
                           [take(arguments, [-1] * case.rows, everything)])  # fmt: skip
    generator = torch.Generator().manual_seed(6)
    for row, slot in product(range(0, case.rows, 97), (-1, 0, 1, 2)):
        assert torch.equal(take(arguments, [slot], torch.tensor([row]))[0], expected[slot, row])
    for count, rows in product((1, 2, 3), ROWS):
        torch.set_num_threads(count)
        picked = torch.randperm(case.rows, generator=generator)[:rows]
        slots = torch.randint(-1, 3, (rows,), generator=generator)
        uneven = slots.repeat_interleave(torch.randint(1, 9, (rows,), generator=generator))[
            :rows
        ]  # segments of 1 and up
        for chosen in (uneven, uneven.sort().values):
            assert torch.equal(take(arguments, chosen.tolist(), picked), expected[chosen, picked])


def test_what_is_not_finite_stays_in_its_row_and_slice() -> None:
    """Of an odd K the last pair must not read the next row, and a slice's infinite part none of its neighbour."""
    case = replace(BASE, inner=101, slices=(40, 50), ranks=((4, 4),), segments=((20, 0),))
    arguments = pack(make_inputs(case, seed=7))
    expected, broken = lora_matmul(*arguments), arguments[0].clone()
    broken[4, 0], broken[11, 100] = math.nan, math.inf
    result, others = lora_matmul(broken, *arguments[1:]), torch.ones(20, dtype=torch.bool)
    others[[4, 11]] = False
    assert torch.equal(result[others], expected[others])
    assert not result[4].isfinite().any() and not result[11].isfinite().any()
    for field, size in ((0, 4 * 101), (1, 4 * 40)):
        arena, start = arguments[3].clone(), int(arguments[4][0, 0, field])
        arena[start : start + size] = math.inf
        result = lora_matmul(*arguments[:3], arena, *arguments[4:])
        assert not result[:, :40].isfinite().any()
        assert torch.equal(result[:, 40:], expected[:, 40:])


def test_layout_holds_each_weight_once_in_pairs_along_k() -> None:
    weight = torch.randn(70, 101).bfloat16()
    packed = pack_weight(weight)
    assert packed.shape == (2, 51, PANEL, 2)
    padded = torch.zeros(128, 102, dtype=torch.bfloat16)
    padded[:70, :101] = weight
    assert torch.equal(packed, padded.view(2, PANEL, 51, 2).transpose(1, 2))


@pytest.mark.parametrize("other", ("baseline", "avx2", "avx512"))
def test_layout_is_refused_where_other_instructions_are_used(other: str) -> None:
    arguments = pack(make_inputs(BASE, seed=8))
    torch.ops.embedmux.set_max_cpu_isa(other)
    with pytest.raises(RuntimeError, match="pack the weight again"):
        lora_matmul(*arguments)
    widening = pack_weight(make_inputs(BASE, seed=8)[1])
    torch.ops.embedmux.set_max_cpu_isa(LEVEL)
    with pytest.raises(RuntimeError, match="packed must be pack_weight"):
        lora_matmul(*arguments[:9], widening, *arguments[10:])
