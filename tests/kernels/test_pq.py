"""What only product quantisation promises: nearest centroids, exact hits whatever the bytes sort out, ties and NaN."""

from typing import Any

import numpy as np
import pytest
import torch

from embedmux.kernels import ops

QUERIES, ROWS, PARTS, WIDTH = 9, 7_345, 24, 4


def search_inputs(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables [Q, M, 16] and codes [n, M / 2] whose scores are hard to sort out in one way or another."""
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(QUERIES, PARTS, 16, generator=generator)
    codes = torch.randint(0, 256, (ROWS, PARTS // 2), generator=generator, dtype=torch.uint8)
    if kind == "rising":  # thresholds never settle: the best rows come last
        codes = codes[scores_of(tables[:1], codes)[0].argsort()]
    if kind == "barely_better":  # than the threshold of the first rows, by one part in a hundred
        tables.zero_()
        tables[:, 0], tables[:, 1] = -16.0 * torch.arange(16), -1.0 * torch.arange(16)
        below = torch.randint(101, 256, (ROWS,), generator=generator)
        below[:2000], below[3000::500] = 100, 99
        codes[:, 0] = below // 16 + below % 16 * 16
    if kind == "large_and_small":
        tables *= 10.0 ** torch.randint(-6, 7, (QUERIES, PARTS, 1), generator=generator)
    if kind == "far_from_zero":
        tables += 1000.0
    if kind == "nearly_equal":
        tables = 1.0 + 1e-7 * tables
    if kind == "huge":
        tables *= 1e37
    return tables, codes.contiguous()


def scores_of(tables: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """float32 sums in the order of m, NaN as minus infinity: the bits the contract names."""
    scores = torch.zeros(tables.size(0), codes.size(0))
    for column in range(codes.size(1)):
        scores += tables[:, 2 * column, (codes[:, column] & 15).long()]
        scores += tables[:, 2 * column + 1, (codes[:, column] >> 4).long()]
    return scores.where(scores == scores, -torch.inf)


def best_of(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ordered, ids = scores.sort(dim=1, descending=True, stable=True)
    return ordered[:, :k], ids[:, :k]


@pytest.mark.parametrize("k", (1, 100))
@pytest.mark.parametrize(
    "kind", ("normal", "rising", "barely_better", "large_and_small", "far_from_zero", "nearly_equal", "huge")
)
def test_hits_are_those_of_a_full_sort_to_the_bit(isa: str, kind: str, k: int, threads: None) -> None:
    tables, codes = search_inputs(kind)
    expected = best_of(scores_of(tables, codes), k)
    packed = ops.pack_pq(codes)
    for count, layout in ((1, packed), (3, packed), (2, None)):
        torch.set_num_threads(count)
        for found, wanted in zip(ops.pq_topk(tables, codes, k, layout), expected, strict=True):
            assert torch.equal(found, wanted)


def test_a_query_has_the_same_hits_alone_and_in_any_company(isa: str, threads: None) -> None:
    tables, codes = search_inputs("normal", seed=1)
    together = ops.pq_topk(tables, codes, 10, ops.pack_pq(codes))
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for query in (0, 7, 8):
            alone = ops.pq_topk(tables[query : query + 1], codes, 10, None)
            assert all(torch.equal(one[0], all_[query]) for one, all_ in zip(alone, together, strict=True))
    assert all(
        torch.equal(one, all_.flip(0))
        for one, all_ in zip(ops.pq_topk(tables.flip(0), codes, 10, None), together, strict=True)
    )


@pytest.mark.parametrize("rows", (1, 63, 64, 100, 2049))
def test_of_equal_scores_the_lower_ids_are_hits(isa: str, rows: int) -> None:
    codes = torch.zeros(rows, 3, dtype=torch.uint8)
    for tables in (torch.ones(2, 6, 16), torch.zeros(2, 6, 16)):
        scores, ids = ops.pq_topk(tables, codes, min(rows, 70), None)
        assert torch.equal(ids[1], torch.arange(min(rows, 70)))
        assert torch.equal(scores, torch.full_like(scores, 6 * tables[0, 0, 0].item()))


def test_nan_and_infinity_rank_as_documented(isa: str) -> None:
    tables, codes = search_inputs("normal", seed=2)
    tables[0, 3, 5], tables[1, 2, 9], tables[2, 0, 1] = torch.nan, torch.inf, -torch.inf
    tables[3] = torch.nan
    tables[4, 0], tables[4, 1] = torch.inf, -torch.inf
    scores, ids = ops.pq_topk(tables, codes, 20, None)
    for found, wanted in zip((scores, ids), best_of(scores_of(tables, codes), 20), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(ids[3], torch.arange(20))
    assert not scores.isnan().any()


def test_codes_name_the_nearest_centroids(isa: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(257, PARTS * WIDTH, generator=generator)
    codebooks = torch.randn(PARTS, 16, WIDTH, generator=generator)
    codes = ops.quantize_pq(rows, codebooks)
    chosen = torch.stack((codes & 15, codes >> 4), 2).flatten(1).long()
    differences = rows.double().view(257, PARTS, 1, WIDTH) - codebooks.double()
    distances = differences.square().sum(3)
    found = distances.gather(2, chosen[:, :, None])[:, :, 0]
    assert torch.all(found <= distances.amin(2) * (1 + 1e-5))
    assert torch.equal(ops.quantize_pq(rows[5:6], codebooks), codes[5:6])
    assert torch.equal(ops.quantize_pq(rows.t().contiguous().t(), codebooks), codes)


def test_nan_and_equal_distances_have_the_documented_codes(isa: str) -> None:
    rows = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0], [0.0, -torch.inf]])
    codebooks = torch.zeros(2, 16, 1)
    codebooks[:, 4:] = 1.0
    assert ops.quantize_pq(rows, codebooks).tolist() == [[0x40], [0x00], [0x00]]
    codebooks[:, 2] = torch.nan
    assert ops.quantize_pq(torch.ones(1, 2), codebooks).tolist() == [[0x44]]
    codebooks[:, :] = torch.nan
    assert ops.quantize_pq(torch.ones(1, 2), codebooks).tolist() == [[0x00]]


def test_tables_are_inner_products_and_find_the_nearest_rows() -> None:
    generator = torch.Generator().manual_seed(4)
    codebooks = torch.randn(PARTS, 16, WIDTH, generator=generator)
    queries = torch.randn(3, PARTS * WIDTH, generator=generator)
    codes = torch.randint(0, 256, (500, PARTS // 2), generator=generator, dtype=torch.uint8)
    nibbles = torch.stack((codes & 15, codes >> 4), 2).flatten(1).long()
    rebuilt = codebooks[torch.arange(PARTS), nibbles].flatten(1)
    scores, ids = ops.pq_topk(ops.pq_tables(queries, codebooks), codes, 5, None)
    expected = (queries.double() @ rebuilt.double().T).topk(5)
    torch.testing.assert_close(scores.double(), expected.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("rows", (0, 1, 63, 64, 100, 2049))
def test_packing_is_that_of_the_reference(rows: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (rows, 5), dtype=np.uint8))
    assert torch.equal(ops.pack_pq(codes), ops.pack_pq.reference(codes))
    torch.library.opcheck(ops.pack_pq.handle, (codes,), test_utils="test_faketensor")


TABLES, CODES = torch.zeros(2, 4, 16), torch.zeros(70, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TABLES, CODES, 0, None), r"k must be in 1..70, at most the rows of codes and 4096, got 0"),
        ((TABLES, CODES, 71, None), r"k must be in 1..70"),
        ((TABLES, CODES[:0], 1, None), r"k must be in 1..0"),
        ((TABLES[:, :2], CODES, 1, None), "tables must"),
        ((TABLES[:, :, :8], CODES, 1, None), "tables must"),
        ((TABLES.half(), CODES, 1, None), "tables must be"),
        ((TABLES, CODES.char(), 1, None), "codes must be"),
        ((TABLES, CODES[0], 1, None), "codes must"),
        ((TABLES, CODES, 1, torch.zeros(1, 2, 64, dtype=torch.uint8)), "packed must"),
        ((TABLES, CODES, 1, torch.zeros(2, 2, 64)), "packed must be"),
    ],
)
def test_searches_outside_the_contract_are_refused(arguments: Any, message: str) -> None:
    for call in (ops.pq_topk, ops.pq_topk.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*arguments)


@pytest.mark.parametrize(
    ("rows", "codebooks", "message"),
    [
        (torch.zeros(8), torch.zeros(2, 16, 4), "rows must"),
        (torch.zeros(3, 8).double(), torch.zeros(2, 16, 4), "must be"),
        (torch.zeros(3, 8), torch.zeros(2, 15, 4), "codebooks must"),
        (torch.zeros(3, 8), torch.zeros(2, 16, 3), "codebooks must"),
        (torch.zeros(3, 9), torch.zeros(3, 16, 3), "codebooks must"),
        (torch.zeros(3, 0), torch.zeros(0, 16, 3), "codebooks must"),
        (torch.zeros(3, 8), torch.zeros(2, 16, 4).half(), "codebooks must be"),
    ],
)
def test_rows_outside_the_contract_are_refused(rows: torch.Tensor, codebooks: torch.Tensor, message: str) -> None:
    for call in (ops.quantize_pq, ops.quantize_pq.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(rows, codebooks)
