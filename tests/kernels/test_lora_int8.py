"""lora_matmul by int8 weights: the numbers of its definition, the same bits in any batch, what may not be finite."""

import random

import pytest
import torch

from embedmux.kernels import lora_matmul as contract
from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import cases, lora_matmul, pack_weight_int8, reference

pytestmark = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the extension is not built")
SIZES = [(1, 32, 32), (7, 64, 40), (33, 100, 97), (64, 384, 1152), (130, 1536, 384), (5, 65, 31)]


def arguments_of(rows: int, inner: int, columns: int, dtype: torch.dtype, *, activation: str = "none") -> list[object]:
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))
    x = torch.randn(rows, inner, generator=generator) * torch.rand(rows, 1, generator=generator).exp()
    x[:, :1] *= 8  # a value that stands out
    weight = (torch.randn(columns, inner, generator=generator) / inner**0.5).to(dtype)
    bias = torch.randn(columns, generator=generator).to(dtype)
    return [
        x.to(dtype), weight, bias, torch.zeros(1, dtype=dtype), torch.zeros(1, 1, 3, dtype=torch.int64),
        torch.tensor([0, rows], dtype=torch.int32), torch.tensor([-1], dtype=torch.int32), [columns], activation,
        pack_weight_int8(weight),
    ]  # fmt: skip


def in_double(arguments: object) -> list[object]:
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]  # type: ignore[attr-defined]


def assert_near(found: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Codes of values in the middle of two may fall either way: a few steps of a row times weights, seldom."""
    rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[found.dtype]
    step = ((x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 254).double()[:, None]
    error = (found.double() - expected).abs() - rounding * expected.abs() - 1e-5
    assert (error <= 12 * step * weight.abs().amax().double() + 1e-6).all()
    assert error.clamp(min=0).mean() <= 0.5 * step.mean() * weight.abs().mean().double() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_numbers_are_those_of_the_definition(
    size: tuple[int, int, int], dtype: torch.dtype, activation: str, isa: str
) -> None:
    arguments = arguments_of(*size, dtype, activation=activation)
    assert_near(lora_matmul(*arguments), reference.lora_matmul(*in_double(arguments)), *arguments[:2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case", [case for case in cases.CASES if case.dtype == torch.bfloat16], ids=lambda case: case.name
)
def test_adapters_gates_and_overrides_stand_beside_codes(case: cases.Case, isa: str) -> None:
    arguments = list(cases.make_inputs(case, seed=5))
    arguments[9] = pack_weight_int8(arguments[1])
    found, expected = lora_matmul(*arguments), reference.lora_matmul(*in_double(arguments))
    # Sums of products of codes are near 1; one code more or less moves them by about 0.003, A x is rounded on AMX.
    torch.testing.assert_close(found.double(), expected, rtol=8e-3, atol=6e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype, isa: str, threads: None) -> None:
    arguments = arguments_of(150, 384, 200, dtype)
    whole = lora_matmul(*arguments)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for first, last in ((0, 1), (17, 18), (31, 33), (100, 150), (3, 140)):
            part = [arguments[0][first:last].clone(), *arguments[1:5]]  # type: ignore[index]
            offsets = torch.tensor([0, last - first], dtype=torch.int32)
            found = lora_matmul(*part, offsets, *arguments[6:])
            assert torch.equal(found.view(torch.uint8), whole[first:last].view(torch.uint8)), (count, first, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_alone(bad: float, dtype: torch.dtype, isa: str) -> None:
    arguments = arguments_of(40, 96, 64, dtype)
    clean = lora_matmul(*arguments)
    arguments[0][3, 50] = bad  # type: ignore[index]
    found = lora_matmul(*arguments)
    assert not found[3].isfinite().any()
    assert torch.equal(found[4:], clean[4:])
    assert torch.equal(found[:3], clean[:3])


@pytest.mark.parametrize("value", [0.0, 1e-38, -3.0, 5.0])
def test_rows_of_one_value_are_exact_enough(value: float, isa: str) -> None:
    arguments = arguments_of(3, 64, 64, torch.float32)
    arguments[0] = torch.full((3, 64), value)
    assert_near(lora_matmul(*arguments), reference.lora_matmul(*in_double(arguments)), *arguments[:2])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_beside_codes_is_as_near_as_csrc_lora_vector_says(dtype: torch.dtype, isa: str) -> None:
    """Rows of zeros leave the bias alone, so that nothing but the activation is off."""
    bias = torch.linspace(-12, 12, 4096).to(dtype)
    arguments = arguments_of(2, 64, 4096, dtype, activation="gelu")
    arguments[0], arguments[2] = torch.zeros(2, 64, dtype=dtype), bias
    exact = torch.nn.functional.gelu(bias.double())
    rounding = exact.abs() * torch.finfo(dtype).eps / 2
    error = (lora_matmul(*arguments)[1].double() - exact).abs() - rounding
    assert (error <= (1.4e-4 * bias.double().abs()).clamp(min=1.1e-3)).all()


def test_codes_of_another_shape_are_refused() -> None:
    arguments = arguments_of(3, 64, 64, torch.bfloat16)
    arguments[9] = pack_weight_int8(torch.randn(96, 64))
    with pytest.raises(RuntimeError, match=r"packed must be pack_weight_int8 of a weight of shape \[64, 64\]"):
        lora_matmul(*arguments)
    with pytest.raises(RuntimeError, match="weight must have 1 to 65536 columns"):
        pack_weight_int8(torch.zeros(1, 65537))
    assert contract.pack_weight_int8 is ops.pack_weight_int8
