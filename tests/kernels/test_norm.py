"""What only add_layer_norm promises: a row stands alone, torch's numbers, strided rows, refused arguments."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    x, residual = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator) for _ in range(2))
    return x, residual, weight, bias


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("width", (63, 100, 384))
def test_row_has_the_same_bits_alone_and_in_a_batch(isa: str, dtype: torch.dtype, width: int) -> None:
    x, residual, weight, bias = inputs(63, width, dtype)
    batch = ops.add_layer_norm(x, residual, weight, bias, 1e-12)
    for row in range(63):
        alone = ops.add_layer_norm(x[row : row + 1], residual[row : row + 1], weight, bias, 1e-12)
        assert torch.equal(alone[0], batch[row])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_rows_may_be_strided(isa: str, dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(20, 200, dtype)
    plain = ops.add_layer_norm(x[:, :63].contiguous(), residual[:, 7:70].contiguous(), weight[:63], bias[:63], 1e-5)
    assert torch.equal(ops.add_layer_norm(x[:, :63], residual[:, 7:70], weight[:63], bias[:63], 1e-5), plain)
    turned = x[:, :63].t().contiguous().t()
    assert torch.equal(ops.add_layer_norm(turned, residual[:, 7:70], weight[:63], bias[:63], 1e-5), plain)


def test_numbers_are_those_of_torch(isa: str) -> None:
    x, residual, weight, bias = inputs(63, 384, torch.float32)
    expected = torch.nn.functional.layer_norm(x + residual, (384,), weight, bias, 1e-5)
    torch.testing.assert_close(ops.add_layer_norm(x, residual, weight, bias, 1e-5), expected, rtol=2e-6, atol=2e-6)


def test_constant_row_gives_the_bias(isa: str) -> None:
    x, _, weight, bias = inputs(3, 100, torch.float32)
    assert torch.equal(ops.add_layer_norm(torch.full_like(x, 0.5), None, weight, bias, 1e-5), bias.expand(3, 100))


def test_nan_stays_in_its_row(isa: str) -> None:
    x, residual, weight, bias = inputs(5, 100, torch.float32)
    x[2, 99] = torch.nan
    out = ops.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert out[2].isnan().all()
    assert out[[0, 1, 3, 4]].isfinite().all()


X, RESIDUAL, WEIGHT, BIAS = inputs(4, 16, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, "x must"),
        ({"residual": RESIDUAL[:3]}, "residual must"),
        ({"residual": RESIDUAL.bfloat16()}, "residual must be"),
        ({"weight": WEIGHT[:15]}, "weight must"),
        ({"bias": BIAS.half()}, "bias must be"),
        ({"eps": -1.0}, "eps must be at least 0, got -1"),
        ({"eps": float("nan")}, "eps must be at least 0, got nan"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    values = {"x": X, "residual": RESIDUAL, "weight": WEIGHT, "bias": BIAS, "eps": 1e-5, **changes}
    for call in (ops.add_layer_norm, ops.add_layer_norm.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())
