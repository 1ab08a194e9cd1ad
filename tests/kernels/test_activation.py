"""What only gated_activation promises: its numbers over all of float32, NaN in its place, refused arguments."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import GATED
from embedmux.kernels.lora_matmul.reference import activate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def inputs(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("kind", GATED)
def test_activation_is_good_to_float32_over_its_whole_range(isa: str, kind: str) -> None:
    gate = torch.linspace(-30, 30, 30_001)[None]
    found = ops.gated_activation(torch.cat((gate, torch.ones_like(gate)), 1), kind).double()
    expected = activate(torch.cat((gate, torch.ones_like(gate)), 1).double(), kind)
    # silu keeps its left tail; the GELUs lose theirs, as torch's do: erf is near -1, or the argument of tanh is large.
    bound = 4e-7 * expected.abs() + 1e-12 if kind == "swiglu" else 2.5e-7 * gate.abs().double()
    assert ((found - expected).abs() <= bound).all()


@pytest.mark.parametrize("kind", GATED)
def test_large_gates_are_passed_or_closed(isa: str, kind: str) -> None:
    x = torch.tensor([[3e4, 1e30, torch.inf, -100.0, -3e4, -1e9, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    found = ops.gated_activation(x, kind)[0]
    assert torch.equal(found[:3], 2 * x[0, :3])
    assert (found[3:].abs() < 1e-25).all()


@pytest.mark.parametrize("kind", GATED)
def test_nan_stays_in_its_place(isa: str, kind: str) -> None:
    for dtype in DTYPES:
        x = inputs(5, 37, dtype)
        x[1, 30] = torch.nan  # a gate
        x[3, 37 + 2] = torch.nan  # an up
        nan = ops.gated_activation(x, kind).isnan()
        assert nan.nonzero().tolist() == [[1, 30], [3, 2]]


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_alone_strided_and_in_a_batch(isa: str, dtype: torch.dtype, kind: str) -> None:
    if not ops.HAS_EXTENSION:
        pytest.skip("the references leave their order to torch")
    x = inputs(23, 101, dtype)
    batch = ops.gated_activation(x, kind)
    wide = torch.cat((x, x), 1)
    assert torch.equal(ops.gated_activation(wide[:, :202], kind), batch)
    assert torch.equal(ops.gated_activation(x.t().contiguous().t(), kind), batch)
    for row in range(23):
        assert torch.equal(ops.gated_activation(x[row : row + 1], kind)[0], batch[row])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": inputs(4, 8, torch.float32)[0]}, "x must"),
        ({"x": inputs(4, 8, torch.float32)[:, :15]}, r"x must be \[T, 2 I\]"),
        ({"x": inputs(4, 8, torch.float32)[:, :0]}, r"x must be \[T, 2 I\]"),
        ({"x": inputs(4, 8, torch.float32).int()}, "x must be"),
        ({"kind": "silu"}, "kind must be one of swiglu, geglu, geglu_tanh, got 'silu'"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    values = {"x": inputs(4, 8, torch.float32), "kind": "swiglu", **changes}
    for call in (ops.gated_activation, ops.gated_activation.reference, ops.gated_activation.triton):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())
