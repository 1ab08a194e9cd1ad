"""Every Triton kernel, on the GPU if there is one, else in Triton's interpreter: the numbers of the float64 reference,
the shapes of the fake, the same bits again.

The launchers are called directly: for CPU tensors the dispatcher would pick the C++ kernels.
"""

import importlib
from functools import cache
from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.library import Op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WITH_TRITON = [op for op in ops.ALL if op.has_triton]


def cases_of(op: Op) -> Any:
    return importlib.import_module(f"{op.reference.__module__}.cases")


def triton_cases(op: Op) -> Any:
    module = cases_of(op)
    return getattr(module, "TRITON_CASES", module.CASES)


EVERY_CASE = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in WITH_TRITON for case in triton_cases(op)]


def widened(argument: Any) -> Any:
    is_float = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if is_float else argument


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def run(op: Op, case: Any) -> tuple[torch.Tensor, ...]:
    arguments = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in cases_of(op).make_inputs(case, seed=1)]
    return tuple(result.cpu() for result in outputs(op.triton(*arguments)))


@cache
def found(op: Op, case: Any) -> tuple[torch.Tensor, ...]:
    return run(op, case)


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_triton_gives_the_numbers_of_the_reference(op: Op, case: Any) -> None:
    expected = outputs(op.reference(*map(widened, cases_of(op).make_inputs(case, seed=1))))
    cases = cases_of(op)
    bounds = getattr(cases, "gpu_tolerance", cases.tolerance) if DEVICE == "cuda" else cases.tolerance
    rtol, atol = bounds(case)
    for mine, other in zip(found(op, case), expected, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_triton_result_has_the_shape_dtype_and_strides_of_the_fake(op: Op, case: Any) -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = [
            mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in cases_of(op).make_inputs(case, seed=1)
        ]
        fake = outputs(op.handle(*arguments))
    for mine, other in zip(found(op, case), fake, strict=True):
        assert (mine.shape, mine.dtype, mine.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize(("op", "case"), EVERY_CASE[::4])
def test_triton_gives_the_same_bits_again(op: Op, case: Any) -> None:
    for mine, other in zip(found(op, case), run(op, case), strict=True):
        assert torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("op", WITH_TRITON, ids=lambda op: op.name)
def test_cuda_calls_are_answered_by_triton(op: Op) -> None:
    assert op.backend("cuda") == "triton"
