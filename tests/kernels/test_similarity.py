"""What only similarity, similarity_topk and rescore promise: one score a pair everywhere, exact order, NaN, errors."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.similarity import cases
from embedmux.kernels.similarity.descale import fold_ranges, quantize_queries

COMPILED = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
KIND = pytest.mark.parametrize("kind", cases.KINDS)
INTEGERS = pytest.mark.parametrize("kind", ("int8", "hamming"))


def arguments(kind: str, queries: int, rows: int, width: int = 100, seed: int = 7) -> Any:
    """(queries, rows, kind, scale, offset), scaled where the kind can be."""
    case = cases.Case("test", kind, queries, rows, width, is_scaled=kind in ("int8", "float_int8"))
    return cases.make_inputs(case, seed)


def picked(vector: torch.Tensor | None, index: Any) -> torch.Tensor | None:
    return None if vector is None else vector[index]


@COMPILED
@KIND
def test_a_pair_has_the_same_bits_in_any_call(isa: str, kind: str) -> None:
    q, r, name, scale, offset = arguments(kind, 130, 75)
    whole = ops.similarity(q, r, name, scale, offset)
    for queries in ([5], [129, 64], list(range(9)), list(range(3, 68))):
        for rows in ([74], [7, 3, 60], list(range(74, 20, -1))):
            part = ops.similarity(q[queries], r[rows], name, picked(scale, queries), picked(offset, queries))
            assert torch.equal(part, whole[queries][:, rows])


@COMPILED
@KIND
@pytest.mark.parametrize(("queries", "rows", "k"), ((1, 700, 10), (9, 700, 33), (70, 200, 200)))
def test_top_and_rescored_scores_are_those_of_similarity(
    isa: str, threads: None, kind: str, queries: int, rows: int, k: int
) -> None:
    q, r, name, scale, offset = arguments(kind, queries, rows)
    whole = ops.similarity(q, r, name, scale, offset)
    expected, order = whole.sort(dim=1, descending=True, stable=True)
    for count in (1, 3):
        torch.set_num_threads(count)
        scores, ids = ops.similarity_topk(q, r, name, k, scale, offset)
        assert torch.equal(scores, expected[:, :k])
        assert torch.equal(ids, order[:, :k])
    assert torch.equal(ops.rescore(q, r, ids, name, scale, offset), scores)


@COMPILED
@INTEGERS
def test_integer_kinds_are_the_same_on_every_instruction_set(isa: str, kind: str) -> None:
    calls = [arguments(kind, queries, 70, width) for queries in (1, 8, 9, 65) for width in (8, 100, 384, 1000)]
    found = [ops.similarity(*call) for call in calls]
    torch.ops.embedmux.set_max_cpu_isa("baseline")
    assert all(torch.equal(ops.similarity(*call), mine) for call, mine in zip(calls, found, strict=True))


def test_extreme_codes_do_not_overflow(isa: str) -> None:
    codes = torch.full((2, 65536), -128, dtype=torch.int8)
    codes[1] = 127
    expected = codes.double() @ codes.double().T
    assert torch.equal(ops.similarity(codes, codes, "int8").double(), expected.float().double())


def test_ties_go_to_the_lower_id(isa: str) -> None:
    rows = torch.zeros(5000, 16, dtype=torch.int8)
    rows[torch.arange(0, 5000, 7)] = 1
    for count in (1, 20):
        queries = torch.ones(count, 16, dtype=torch.int8)
        scores, ids = ops.similarity_topk(queries, rows, "int8", 1000)
        others = [i for i in range(5000) if i % 7]
        assert ids.tolist() == [[*range(0, 5000, 7), *others][:1000]] * count
        assert scores[0].tolist() == [16.0] * 715 + [0.0] * 285


@pytest.mark.parametrize("queries", (1, 20))
def test_nan_stays_in_similarity_and_is_last_elsewhere(isa: str, queries: int) -> None:
    q, r, *_ = arguments("dot:float32", queries, 100)
    clean = ops.similarity(q, r, "dot")
    r[:50, 3] = torch.nan
    r[50] = torch.inf * q[0].sign()
    scores = ops.similarity(q, r, "dot")
    assert scores[:, :50].isnan().all()
    assert torch.equal(scores[:, 51:], clean[:, 51:])
    best, ids = ops.similarity_topk(q, r, "dot", 60)
    assert ids[0, 0] == 50
    assert torch.isneginf(best[0, 50:]).all()
    assert ids[0, 50:].tolist() == list(range(10))
    assert torch.equal(ops.rescore(q, r, ids, "dot"), best)
    assert ops.similarity_topk(q * torch.nan, r, "dot", 4)[1].tolist() == [[0, 1, 2, 3]] * queries


def test_rows_may_lie_apart(isa: str) -> None:
    for kind in cases.KINDS:
        q, r, name, scale, offset = arguments(kind, 5, 40, 64)
        apart = torch.cat((r, r), 1)[:, : r.size(1)]
        turned = r.t().contiguous().t()
        for rows in (apart, turned):
            assert torch.equal(ops.similarity(q, rows, name, scale, offset), ops.similarity(q, r, name, scale, offset))


@COMPILED
def test_many_queries_with_many_results_are_walked_in_passes() -> None:
    q, r, name, scale, offset = arguments("int8", 520, 4200, 8)
    expected, order = ops.similarity(q, r, name, scale, offset).sort(dim=1, descending=True, stable=True)
    scores, ids = ops.similarity_topk(q, r, name, 4096, scale, offset)
    assert torch.equal(scores, expected[:, :4096])
    assert torch.equal(ids, order[:, :4096])


def test_large_output_is_whole(isa: str) -> None:
    """Long lines of scores are written past the caches."""
    q, r, *_ = arguments("int8", 17, 16384 * 2, 16)
    assert torch.equal(ops.similarity(q, r, "int8").double(), q.double() @ r.double().T)


def test_missing_candidates_are_infinitely_far(isa: str) -> None:
    q, r, *_ = arguments("dot:float32", 2, 9)
    found = ops.rescore(q, r, torch.tensor([[-1, 8, -1], [0, -1, 0]]), "dot")
    assert torch.isneginf(found).tolist() == [[True, False, True], [False, True, False]]
    assert found[1, 0] == found[1, 2]


def test_scores_of_calibrated_codes_approximate_those_of_floats() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(500, 384, generator=generator) * (torch.rand(384, generator=generator) + 0.1) + 0.3
    rows[:, 7] = 0.25  # an empty range
    queries = torch.randn(20, 384, generator=generator)
    queries[19] = 0
    ranges = torch.stack((rows.amin(0), rows.amax(0)))
    codes = ops.quantize_rows(rows, "int8", ranges)
    exact = queries @ rows.T
    folded, offset = fold_ranges(queries, ranges)
    torch.testing.assert_close(ops.similarity(folded, codes, "float_int8", None, offset), exact, rtol=0, atol=0.5)
    quantized, scale, int_offset = quantize_queries(queries, ranges)
    found = ops.similarity(quantized, codes, "int8", scale, int_offset)
    torch.testing.assert_close(found, exact, rtol=0, atol=1.5)
    assert exact.std() > 10

    symmetric = (rows / rows.abs().max() * 127).round().to(torch.int8)
    quantized, scale, none = quantize_queries(queries, None)
    found = ops.similarity(quantized, symmetric, "int8", scale * rows.abs().max() / 127, none)
    torch.testing.assert_close(found, exact, rtol=0, atol=2.5)


FLOATS, CODES, BITS = torch.zeros(3, 16), torch.zeros(4, 16, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.uint8)
INTS = CODES[:3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((FLOATS, FLOATS, "cosine"), "kind must be"),
        ((FLOATS[0], FLOATS, "dot"), "queries must"),
        ((FLOATS[:, :0], FLOATS[:, :0], "dot"), r"queries must be \[Q, D\] with D from 1 to 65536"),
        ((FLOATS, FLOATS[0], "dot"), "rows must"),
        ((FLOATS, FLOATS[:, 1:], "dot"), "rows must"),
        ((FLOATS, FLOATS.half(), "dot"), "rows must be"),
        ((INTS, CODES, "dot"), "queries must be"),
        ((FLOATS, CODES, "int8"), "queries must be"),
        ((INTS, BITS, "int8"), "rows must be"),
        ((FLOATS, BITS[:, :1], "float_binary"), "rows must"),
        ((FLOATS.half(), CODES, "float_int8"), "queries must be"),
        ((FLOATS, FLOATS, "dot", torch.ones(3)), "query_scale must be None"),
        ((FLOATS, BITS, "float_binary", None, torch.ones(3)), "query_offset must be None"),
        ((INTS, CODES, "int8", torch.ones(4)), "query_scale must"),
        ((INTS, CODES, "int8", torch.ones(3), torch.ones(3, dtype=torch.int32)), "query_offset must be"),
    ],
)
def test_arguments_outside_the_contract_are_refused(call: tuple[Any, ...], message: str) -> None:
    q, r, kind, *factors = call
    none = torch.zeros(q.size(0), 0, dtype=torch.int64)
    for op, full in (
        (ops.similarity, call),
        (ops.similarity_topk, (q, r, kind, 1, *factors)),
        (ops.rescore, (q, r, none, kind, *factors)),
    ):
        for one in (op, op.reference):
            with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
                one(*full)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, "k must be from 1 to 4096"),
        (4097, "k must be from 1 to 4096"),
        (5, "k must be at most the 4 rows there are"),
    ],
)
def test_k_out_of_range_is_refused(k: int, message: str) -> None:
    for one in (ops.similarity_topk, ops.similarity_topk.reference):
        with pytest.raises((ValueError, RuntimeError), match=message):
            one(INTS, CODES, "int8", k)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (torch.zeros(3, 2), "candidates must be"),
        (torch.zeros(2, 2, dtype=torch.int64), "candidates must"),
        (torch.full((3, 2), 4), "candidates must be from -1 to 3"),
        (torch.full((3, 2), -2), "candidates must be from -1 to 3"),
    ],
)
def test_candidates_that_are_no_rows_are_refused(candidates: torch.Tensor, message: str) -> None:
    for one in (ops.rescore, ops.rescore.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            one(INTS, CODES, candidates, "int8")
