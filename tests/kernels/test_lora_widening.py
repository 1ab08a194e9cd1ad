"""The product by 16-bit weights that are widened: exactly, in one order of sums, from a layout 16 bits wide."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import lora_matmul, pack_weight, reference

pytestmark = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the layout belongs to the compiled kernel")

HALVES = (torch.bfloat16, torch.float16)
PANEL, BLOCK, TILE, TASK = 64, 64, 6, 252  # columns of a panel, K of a block, rows of a tile, rows of a task
# Row counts around tiles and tasks; (K, N) around blocks and panels.
ROWS = (1, 2, 5, TILE, TILE + 1, 3 * TILE + 1, TASK - 1, TASK + 1, 2 * TASK + 7)
SHAPES = (
    (1, 1),
    (7, PANEL - 1),
    (BLOCK - 1, PANEL),
    (BLOCK, PANEL + 1),
    (BLOCK + 1, 3),
    (3 * BLOCK - 15, 2 * PANEL + 17),
    (4 * BLOCK + 33, 3 * PANEL),
)
WIDENING = ("baseline", "avx2", "avx512")


def widens(dtype: torch.dtype, isa: str) -> bool:
    """Whether the kernel under test serves the dtype; bfloat16 has its own on AVX512_BF16 and on AMX."""
    return dtype == torch.float16 or isa in WIDENING


def multiply(x: torch.Tensor, weight: torch.Tensor, packed: torch.Tensor | None, **given: Any) -> torch.Tensor:
    """x Wᵀ + bias, without adapters."""
    slices, rows = given.get("slices", [weight.shape[0]]), torch.tensor([0, x.shape[0]], dtype=torch.int32)
    adapters = torch.zeros(1, len(slices), 3, dtype=torch.int64)
    result: torch.Tensor = lora_matmul(
        x, weight, given.get("bias"), torch.zeros(1, dtype=x.dtype), adapters,
        rows, torch.tensor([-1], dtype=torch.int32), slices, given.get("activation", "none"), packed,
    )  # fmt: skip
    return result


def stand_in(weight: torch.Tensor) -> torch.Tensor:
    """A weight of the same shape without memory or values: what packed must not need."""
    return torch.full((), math.nan, dtype=weight.dtype).expand(weight.shape)


def normal(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_row_alone_has_the_bits_it_has_among_any_number(
    inner: int, columns: int, dtype: torch.dtype, isa: str, threads: None
) -> None:
    x, weight = normal(ROWS[-1], inner, dtype=dtype, seed=1), normal(columns, inner, dtype=dtype, seed=2)
    packed, bias = pack_weight(weight), normal(columns, dtype=dtype, seed=3)
    torch.set_num_threads(1)
    expected = multiply(x, weight, packed, bias=bias)
    alone = torch.cat([multiply(x[row : row + 1], weight, packed, bias=bias) for row in range(0, ROWS[-1], 23)])
    assert torch.equal(alone, expected[::23])
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        for rows in ROWS:
            first = ROWS[-1] - rows
            assert torch.equal(multiply(x[first:], weight, packed, bias=bias), expected[first:])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_whole_numbers_give_the_exact_product(inner: int, columns: int, dtype: torch.dtype, isa: str) -> None:
    """Their sums stay below 2^24, so that only the result is rounded, whatever the order."""
    generator = torch.Generator().manual_seed(4)
    x, weight, bias = (
        torch.randint(-7, 8, shape, generator=generator).to(dtype)
        for shape in ((2 * TILE + 1, inner), (columns, inner), (columns,))
    )
    exact = (x.double() @ weight.double().T + bias.double()).to(dtype)
    assert torch.equal(
        multiply(x, stand_in(weight) if widens(dtype, isa) else weight, pack_weight(weight), bias=bias), exact
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 300),
    half=st.integers(1, 100),
    dtype=st.sampled_from(HALVES),
    activation=st.sampled_from(("none", "silu", "gelu", "swiglu", "geglu_tanh")),
    seed=st.integers(0, 2**31),
)
def test_any_shape_is_close_to_float64(
    isa: str, rows: int, inner: int, half: int, dtype: torch.dtype, activation: str, seed: int
) -> None:
    x, weight = normal(rows, inner, dtype=dtype, seed=seed), normal(2 * half, inner, dtype=dtype, seed=seed + 1)
    weight, bias = (weight / inner**0.5).to(dtype), normal(2 * half, dtype=dtype, seed=seed + 2)
    result = multiply(x, weight, pack_weight(weight), bias=bias, activation=activation, slices=[half, half])
    exact = reference.activate(x.double() @ weight.double().T + bias.double(), activation)
    # One rounding of the result: 2^-9 or 2^-12 of it, and the rounding of float32 sums and activations.
    torch.testing.assert_close(result.double(), exact, rtol=4.1e-3 if dtype == torch.bfloat16 else 5.1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_finite_weight_is_widened_exactly(dtype: torch.dtype, isa: str) -> None:
    """All bit patterns, subnormal numbers too, times one and zeros; bfloat16's own instructions lose these."""
    if not widens(dtype, isa):
        pytest.skip("bfloat16 has another kernel on this instruction set")
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.isfinite()]
    inner = 80
    weight = torch.cat((values, values.new_zeros(-values.numel() % inner))).view(-1, inner)
    for rows in (1, inner):  # read 16 bits wide by the first tile, as float32 by those that follow
        result = multiply(torch.eye(inner, dtype=dtype)[-rows:], weight, pack_weight(weight))
        assert torch.equal(result, weight.T[-rows:])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, isa: str) -> None:
    x, weight = normal(20, 100, dtype=dtype, seed=5), normal(70, 100, dtype=dtype, seed=6)
    packed = pack_weight(weight)
    expected = multiply(x, weight, packed)
    broken = x.clone()
    broken[3, 50], broken[11, 99] = math.nan, math.inf
    result, others = multiply(broken, weight, packed), torch.ones(20, dtype=torch.bool)
    others[[3, 11]] = False
    assert torch.equal(result[others], expected[others])
    assert not result[[3, 11]].isfinite().any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_packed_weight_stays_16_bits_wide(dtype: torch.dtype, isa: str) -> None:
    weight = normal(3 * PANEL, 200, dtype=dtype, seed=7)
    packed = pack_weight(weight)
    assert packed.dtype == dtype
    assert packed.untyped_storage().nbytes() <= 1.13 * weight.untyped_storage().nbytes()  # AMX: K is rounded up to 32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layout_and_bits_are_those_of_every_level_that_widens(dtype: torch.dtype, isa: str) -> None:
    if not widens(dtype, isa):
        pytest.skip("bfloat16 has another layout on this instruction set")
    x, weight = normal(9, 130, dtype=dtype, seed=8), normal(90, 130, dtype=dtype, seed=9)
    here = pack_weight(weight)
    result = multiply(x, stand_in(weight), here)
    torch.ops.embedmux.set_max_cpu_isa("baseline")
    assert torch.equal(pack_weight(weight), here)
    assert torch.equal(multiply(x, stand_in(weight), here), result)  # products of 16-bit numbers are exact in float32


def test_packed_of_another_kind_is_refused_by_name(isa: str) -> None:
    x, weight = normal(4, 100, dtype=torch.bfloat16, seed=10), normal(70, 100, dtype=torch.bfloat16, seed=11)
    packed = pack_weight(weight)
    for other in (
        pack_weight(weight.half()),
        pack_weight(weight[:64].contiguous()),
        pack_weight(weight[:, :64].contiguous()),
        pack_weight(weight.float()),
        packed.transpose(-1, -2),
        packed.flatten(),
        weight,
    ):
        with pytest.raises(RuntimeError, match=r"packed must be pack_weight of a weight of shape \[70, 100\]"):
            multiply(x, weight, other)
    with pytest.raises(RuntimeError, match=r"packed must be pack_weight of a weight of shape \[70, 100\] and dtype"):
        multiply(x.half(), weight.half(), packed)
    with pytest.raises(RuntimeError, match="packed must be pack_weight"):
        multiply(x.float(), weight.float(), packed)


def test_layouts_of_amx_and_of_the_levels_below_are_not_confused(isa: str) -> None:
    x, weight = normal(4, 64, dtype=torch.bfloat16, seed=12), normal(64, 64, dtype=torch.bfloat16, seed=13)
    if isa == "amx":
        torch.ops.embedmux.set_max_cpu_isa("avx512_bf16")
        below = pack_weight(weight)
        torch.ops.embedmux.set_max_cpu_isa("amx")
        with pytest.raises(RuntimeError, match="packed must be pack_weight"):
            multiply(x, weight, below)
    else:
        tiles = torch.zeros(2, 2, 2, 16, 32, dtype=torch.bfloat16)  # what AMX packs for 64 x 64
        with pytest.raises(RuntimeError, match="pack the weight again"):
            multiply(x, weight, tiles)
