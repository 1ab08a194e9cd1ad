"""What every op promises, over all its cases: the definition's numbers, honest fakes, the same bits again."""

import importlib
from functools import cache
from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.library import Op


def cases_of(op: Op) -> Any:
    return importlib.import_module(f"{op.reference.__module__}.cases")


EVERY_CASE = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.ALL for case in cases_of(op).CASES]
SOME_CASES = [pytest.param(op, case, id=f"{op.name}-{case.name}") for op in ops.ALL for case in cases_of(op).CASES[::5]]


def widened(argument: Any) -> Any:
    if isinstance(argument, list):
        return [widened(each) for each in argument]
    is_float = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if is_float else argument


def listed(argument: Any) -> list[torch.Tensor]:
    """The tensors of an argument."""
    return [each for each in (argument if isinstance(argument, list) else [argument]) if isinstance(each, torch.Tensor)]


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@cache
def expected_of(op: Op, case: Any) -> tuple[torch.Tensor, ...]:
    """The reference's results in float64; the instruction sets share them."""
    results = outputs(op.reference(*map(widened, cases_of(op).make_inputs(case, seed=1))))
    return tuple(result.double() for result in results)


def same_bits(one: Any, other: Any) -> bool:
    return all(
        mine.dtype == theirs.dtype
        and torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
        for mine, theirs in zip(outputs(one), outputs(other), strict=True)
    )


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_op_gives_the_numbers_of_its_reference(op: Op, case: Any, isa: str) -> None:
    arguments = cases_of(op).make_inputs(case, seed=1)
    cases = cases_of(op)
    bounds = getattr(cases, "amx_tolerance", cases.tolerance) if isa == "amx" else cases.tolerance
    rtol, atol = bounds(case)
    for mine, expected in zip(outputs(op(*arguments)), expected_of(op, case), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_op_gives_the_same_bits_again_and_on_any_number_of_threads(op: Op, case: Any, isa: str, threads: None) -> None:
    if not ops.HAS_EXTENSION:
        pytest.skip("the references leave their sums to torch")
    arguments = cases_of(op).make_inputs(case, seed=2)
    first = op(*arguments)
    assert same_bits(op(*arguments), first)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert same_bits(op(*arguments), first), f"{count} threads"


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_op_leaves_its_arguments_alone(op: Op, case: Any) -> None:
    arguments = cases_of(op).make_inputs(case, seed=3)
    before = cases_of(op).make_inputs(case, seed=3)
    op(*arguments)
    for argument, copy in zip(map(listed, arguments), map(listed, before), strict=True):
        assert all(same_bits(mine, kept) for mine, kept in zip(argument, copy, strict=True))


@pytest.mark.parametrize(("op", "case"), SOME_CASES)
def test_op_passes_opcheck(op: Op, case: Any) -> None:
    torch.library.opcheck(op.handle, cases_of(op).make_inputs(case, seed=4))


@pytest.mark.parametrize(("op", "case"), EVERY_CASE)
def test_fake_has_the_shape_dtype_and_strides_of_the_result(op: Op, case: Any) -> None:
    torch.library.opcheck(op.handle, cases_of(op).make_inputs(case, seed=5), test_utils="test_faketensor")


@pytest.mark.parametrize("op", ops.ALL, ids=lambda op: op.name)
def test_op_runs_compiled_when_the_extension_is_there(op: Op) -> None:
    plain = "ops" if op.is_composed else "reference"
    assert op.backend("cpu") == ("csrc" if ops.HAS_EXTENSION else plain)
    assert ops.backends("cpu")[op.name] == op.backend("cpu")


@pytest.mark.parametrize("op", ops.ALL, ids=lambda op: op.name)
def test_tensors_on_meta_beside_the_cpu_are_refused(op: Op) -> None:
    arguments = list(cases_of(op).make_inputs(cases_of(op).CASES[0], seed=6))
    places = [place for place, value in enumerate(arguments) if isinstance(value, torch.Tensor) and not value.is_mkldnn]
    for place in places if len(places) > 1 else []:
        mixed = [*arguments[:place], arguments[place].to("meta"), *arguments[place + 1 :]]
        with pytest.raises(ValueError, match="one device, got cpu and meta"):
            op(*mixed)


@pytest.mark.parametrize("op", ops.ALL, ids=lambda op: op.name)
def test_cases_have_their_own_names_and_benchmarks(op: Op) -> None:
    names = [case.name for case in (*cases_of(op).CASES, *cases_of(op).BENCHMARK_CASES)]
    assert len(set(names)) == len(names)
    assert cases_of(op).BENCHMARK_CASES


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the extension is not built")
def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="unknown instruction set 'sse9': one of baseline"):
        torch.ops.embedmux.set_max_cpu_isa("sse9")
