"""Search in Triton, on a GPU or in its interpreter: one score in three ops, ties, NaN, many rows, any strides."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.library import Op
from embedmux.kernels.similarity import cases
from embedmux.kernels.similarity_topk import cuda as topk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_triton(op: Op, *arguments: Any) -> Any:
    """The Triton kernel's answer, back on the CPU."""
    found = op.triton(*(value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments))
    return found.cpu() if isinstance(found, torch.Tensor) else tuple(value.cpu() for value in found)


def similarity(*arguments: Any) -> torch.Tensor:
    found: torch.Tensor = on_triton(ops.similarity, *arguments)
    return found


def similarity_topk(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scores, ids = on_triton(ops.similarity_topk, *arguments)
    return scores, ids


def rescore(*arguments: Any) -> torch.Tensor:
    found: torch.Tensor = on_triton(ops.rescore, *arguments)
    return found


def inputs(kind: str, queries: int, rows: int, width: int, *, seed: int = 1, on_grid: bool = False) -> cases.Arguments:
    scaled = kind in ("int8", "float_int8")
    return cases.make_inputs(cases.Case("", kind, queries, rows, width, is_scaled=scaled, on_grid=on_grid), seed)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_three_ops_give_one_score(kind: str) -> None:
    """Bit by bit, for a query alone or among others, whatever other rows there are."""
    queries, rows, name, scale, offset = inputs(kind, 35, 140, 24)
    every = similarity(queries, rows, name, scale, offset)
    ids = torch.arange(139, 9, -1).expand(35, -1)
    assert same_bits(rescore(queries, rows, ids, name, scale, offset), every.gather(1, ids))
    best, where = similarity_topk(queries, rows, name, 7, scale, offset)
    assert same_bits(best + 0.0, every.gather(1, where) + 0.0)
    one = slice(33, 34)
    scale_of_one, offset_of_one = (None if vector is None else vector[one] for vector in (scale, offset))
    alone = similarity(queries[one], rows[100:], name, scale_of_one, offset_of_one)
    assert same_bits(alone, every[one, 100:].contiguous())


@pytest.mark.parametrize("k", [1, 5, 32, 33, 300])
@pytest.mark.parametrize("kind", ["dot:float32", "hamming"])
def test_ties_go_to_the_lower_row_across_programs_and_slabs(kind: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "SLAB_BYTES", 4 * 700 * 2)  # two queries at a time
    queries, rows, name, *_ = inputs(kind, 3, 700, 8, on_grid=True)
    rows[400:] = rows[:300]
    scores, ids = similarity_topk(queries, rows, name, k)
    expected = ops.similarity_topk.reference(queries, rows, name, k)
    assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("k", [4, 40])
def test_nan_counts_as_minus_infinity_and_stands_behind_every_number(k: int) -> None:
    queries, rows = torch.ones(2, 4), torch.randint(-300, 300, (60, 4)) / 64  # sums are exact in any order
    rows[3:57] = torch.nan
    rows[58] = -torch.inf
    scores, ids = similarity_topk(queries, rows, "dot", k)
    expected = ops.similarity_topk.reference(queries, rows, "dot", k)
    assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])
    assert similarity(queries, rows, "dot").isnan().sum() == 2 * 54
    assert rescore(queries, rows, torch.tensor([[3, 0]] * 2), "dot")[:, 0].tolist() == [-torch.inf] * 2


def test_equal_zeros_of_either_sign_are_ties() -> None:
    rows = torch.tensor([[-1], [0], [1], [0]], dtype=torch.int8)
    scale, offset = torch.tensor([-1.0]), torch.tensor([-0.0])
    scores, ids = similarity_topk(torch.tensor([[0]], dtype=torch.int8), rows, "int8", 4, scale, offset)
    assert scores.tolist() == [[0, 0, 0, 0]] and ids.tolist() == [[0, 1, 2, 3]]


def test_candidates_outside_the_rows_read_nothing() -> None:
    queries, rows, *_ = inputs("dot:float32", 2, 5, 16)
    ids = torch.tensor([[-1, 4, 5, -(2**40)], [2**40, 0, -2, 3]])
    scores = rescore(queries, rows, ids, "dot")
    assert scores.isinf().tolist() == [[True, False, True, True], [True, False, True, False]]
    assert (scores[scores.isinf()] < 0).all()


@pytest.mark.parametrize(("columns", "step"), [(slice(None), 2), (slice(1, 13), 1), (slice(4, 12), 1)])
@pytest.mark.parametrize("kind", ["dot:bfloat16", "int8", "hamming", "float_int8"])
def test_any_strides_are_read(kind: str, columns: slice, step: int) -> None:
    width = 16 * (8 if kind == "hamming" else 1)
    queries, rows, name, scale, offset = inputs(kind, 3, 20, width)
    left, right = queries.to(DEVICE)[:, columns], rows.to(DEVICE)[::step, columns]
    expected = similarity(left.contiguous(), right.contiguous(), name, scale, offset)
    assert same_bits(similarity(left, right, name, scale, offset), expected)
    sideways = right.t().contiguous().t()
    assert same_bits(similarity(left, sideways, name, scale, offset), expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_large_queries_against_codes_stay_numbers() -> None:
    """Where bfloat16 rounds up to infinity, and where a value is infinite."""
    rows = torch.ones(1, 1, dtype=torch.int8)
    queries = torch.tensor([[3.4e38], [-3.4e38], [torch.inf], [1e-30]])
    scores = similarity(queries, rows, "float_int8")
    assert scores[2].item() == torch.inf and not scores.isnan().any()
    torch.testing.assert_close(scores[3].item(), 1e-30, rtol=1e-6, atol=0)
