"""What only the norms promise: a row stands alone, torch's numbers, strided rows, refused arguments."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("layer", "rms")


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    x, residual = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(width, generator=generator) for _ in range(2))
    return x, residual, weight, bias


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (63, 100, 384))
def test_row_has_the_same_bits_alone_and_in_a_batch(isa: str, dtype: torch.dtype, width: int) -> None:
    x, residual, weight, bias = inputs(63, width, dtype)
    batch = ops.add_layer_norm(x, residual, weight, bias, 1e-12)
    for row in range(63):
        alone = ops.add_layer_norm(x[row : row + 1], residual[row : row + 1], weight, bias, 1e-12)
        assert torch.equal(alone[0], batch[row])
    for kind in KINDS:
        both = ops.pre_norm(x, residual, weight, None, 1e-12, kind)
        for row in range(0, 63, 7):
            alone = ops.pre_norm(x[row : row + 1], residual[row : row + 1], weight, None, 1e-12, kind)
            assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, both, strict=True))


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_pre_norm_has_the_bits_of_add_layer_norm(isa: str, dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(20, 100, dtype)
    normed, total = ops.pre_norm(x, residual, weight, bias, 1e-5, "layer")
    assert torch.equal(normed, ops.add_layer_norm(x, residual, weight, bias, 1e-5))
    assert torch.equal(total, x + residual)  # torch adds in float32 and rounds once, too


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_norm_is_taken_of_the_sum_before_it_is_rounded(isa: str, dtype: torch.dtype) -> None:
    x, residual, weight, _ = inputs(20, 384, dtype)
    expected = torch.nn.functional.rms_norm(x.double() + residual.double(), (384,), weight.double(), 1e-6)
    of_rounded = torch.nn.functional.rms_norm((x + residual).double(), (384,), weight.double(), 1e-6)
    found = ops.pre_norm(x, residual, weight, None, 1e-6, "rms")[0].double()
    assert (found - expected).norm() < 0.8 * (found - of_rounded).norm()


def test_sum_without_residual_is_a_copy(isa: str) -> None:
    x, _, weight, _ = inputs(20, 100, torch.bfloat16)
    wide = torch.cat((x, x), 1)
    _, total = ops.pre_norm(wide[:, :100], None, weight, None, 1e-6, "rms")
    assert torch.equal(total, x)
    assert total.is_contiguous() and total.data_ptr() != wide.data_ptr()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_rows_may_be_strided(isa: str, dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(20, 200, dtype)
    plain = ops.add_layer_norm(x[:, :63].contiguous(), residual[:, 7:70].contiguous(), weight[:63], bias[:63], 1e-5)
    assert torch.equal(ops.add_layer_norm(x[:, :63], residual[:, 7:70], weight[:63], bias[:63], 1e-5), plain)
    turned = x[:, :63].t().contiguous().t()
    assert torch.equal(ops.add_layer_norm(turned, residual[:, 7:70], weight[:63], bias[:63], 1e-5), plain)


def test_numbers_are_those_of_torch(isa: str) -> None:
    x, residual, weight, bias = inputs(63, 384, torch.float32)
    expected = torch.nn.functional.rms_norm(x + residual, (384,), weight, 1e-5)
    torch.testing.assert_close(ops.pre_norm(x, residual, weight, None, 1e-5, "rms")[0], expected, rtol=2e-6, atol=2e-6)
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
    for kind in KINDS:
        normed, total = ops.pre_norm(x, residual, weight, None, 1e-5, kind)
        assert normed[2].isnan().all()
        assert total[2].isnan().sum() == 1
        assert normed[[0, 1, 3, 4]].isfinite().all()


X, RESIDUAL, WEIGHT, BIAS = inputs(4, 16, torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, "x must"),
        ({"x": X.int()}, "x must be"),
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
    for call in (ops.add_layer_norm, ops.add_layer_norm.reference, ops.add_layer_norm.triton):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())
    for call in (ops.pre_norm, ops.pre_norm.reference, ops.pre_norm.triton):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values(), "rms")


def test_unknown_kind_is_refused() -> None:
    for call in (ops.pre_norm, ops.pre_norm.reference, ops.pre_norm.triton):
        with pytest.raises((ValueError, RuntimeError), match=r"kind must be .*layer.*rms.*, got 'batch'"):
            call(X, RESIDUAL, WEIGHT, BIAS, 1e-5, "batch")
