"""What only maxsim promises: a pair's bits are its own, whatever else is in the call; empty texts, NaN, refusals."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
DOCUMENTS = (1, 63, 0, 100, 16, 31, 2049, 32, 7)
QUERIES = (32, 1, 0, 19)


def tokens(counts: tuple[int, ...], dtype: torch.dtype, dimensions: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Packed tokens and their offsets."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    shape = sum(counts), dimensions
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=dtype), offsets
    return torch.randn(shape, generator=generator).to(dtype), offsets


def cut(packed: torch.Tensor, offsets: torch.Tensor) -> list[torch.Tensor]:
    return list(packed.split(offsets.diff().tolist()))


def offsets_of(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([0, *map(len, parts)]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("dimensions", (128, 63, 1))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pair_has_the_same_bits_alone_and_in_any_company(
    isa: str, dtype: torch.dtype, dimensions: int, threads: None
) -> None:
    queries, query_offsets = tokens(QUERIES, dtype, dimensions, seed=1)
    documents, offsets = tokens(DOCUMENTS, dtype, dimensions, seed=2)
    together = ops.maxsim(queries, query_offsets, documents, offsets)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert torch.equal(ops.maxsim(queries, query_offsets, documents, offsets), together)
    for i, query in enumerate(cut(queries, query_offsets)):
        for j, document in enumerate(cut(documents, offsets)):
            alone = ops.maxsim(query, offsets_of([query]), document, offsets_of([document]))
            assert torch.equal(alone[0, 0], together[i, j]), (i, j)
    backwards = cut(documents, offsets)[::-1]
    turned = ops.maxsim(queries, query_offsets, torch.cat(backwards), offsets_of(backwards))
    assert torch.equal(turned.flip(1), together)


@pytest.mark.parametrize("dimensions", (128, 100, 1024))
def test_int8_is_exact_on_every_instruction_set(isa: str, dimensions: int) -> None:
    queries, query_offsets = tokens((40, 3), torch.int8, dimensions, seed=3)
    documents, offsets = tokens((33, 5), torch.int8, dimensions, seed=4)
    queries[0], documents[7] = -128, -128
    dots = queries.long() @ documents.long().T
    best = torch.stack((dots[:, :33].amax(1), dots[:, 33:].amax(1)), 1)
    expected = torch.stack((best[:40].sum(0), best[40:].sum(0)))
    assert torch.equal(ops.maxsim(queries, query_offsets, documents, offsets), expected.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_texts_have_the_documented_scores(isa: str, dtype: torch.dtype) -> None:
    queries, query_offsets = tokens((0, 2), dtype, 8, seed=5)
    documents, offsets = tokens((0, 3, 0), dtype, 8, seed=6)
    scores = ops.maxsim(queries, query_offsets, documents, offsets)
    assert scores[:, 0].tolist() == scores[:, 2].tolist() == [-torch.inf, -torch.inf]
    assert scores[0, 1] == 0
    assert scores[1, 1].isfinite()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("place", (0, 15, 31, 40))
def test_a_nan_token_is_never_the_best_match(isa: str, dtype: torch.dtype, place: int) -> None:
    queries, query_offsets = tokens((5, 3), dtype, 32, seed=7)
    documents, offsets = tokens((41,), dtype, 32, seed=8)
    documents[place, 3] = torch.nan
    others = torch.cat((documents[:place], documents[place + 1 :]))
    expected = ops.maxsim(queries, query_offsets, others, offsets_of([others]))
    assert torch.equal(ops.maxsim(queries, query_offsets, documents, offsets), expected)
    queries[6, 0] = torch.nan
    scores = ops.maxsim(queries, query_offsets, documents, offsets)
    assert scores[1, 0] == -torch.inf
    assert torch.equal(scores[0], expected[0])


def test_what_lies_between_rows_is_not_read(isa: str) -> None:
    queries, query_offsets = tokens((20,), torch.bfloat16, 64, seed=9)
    documents, offsets = tokens((50, 20), torch.bfloat16, 64, seed=10)
    wide = torch.full((70, 65), torch.nan, dtype=torch.bfloat16)
    wide[:, 1:] = documents
    expected = ops.maxsim(queries, query_offsets, documents, offsets)
    assert torch.equal(ops.maxsim(queries, query_offsets, wide[:, 1:], offsets), expected)


TOKENS, OFFSETS = torch.zeros(5, 8), torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TOKENS[0], OFFSETS, TOKENS, OFFSETS), "queries must"),
        ((TOKENS[:, :0], OFFSETS, TOKENS[:, :0], OFFSETS), "queries must"),
        ((TOKENS, OFFSETS, TOKENS[:, :4], OFFSETS), "documents must"),
        ((TOKENS, OFFSETS, TOKENS.half(), OFFSETS), "documents must be"),
        ((TOKENS.int(), OFFSETS, TOKENS.int(), OFFSETS), "queries must be"),
        ((TOKENS, OFFSETS.long(), TOKENS, OFFSETS), "query_offsets must be"),
        ((TOKENS, OFFSETS[:0], TOKENS, OFFSETS), "query_offsets must"),
        ((TOKENS, OFFSETS, TOKENS, OFFSETS[:2]), "document_offsets must"),
        ((TOKENS, OFFSETS, TOKENS, torch.tensor([0, 6, 5], dtype=torch.int32)), "document_offsets must"),
        ((TOKENS, OFFSETS, TOKENS, torch.tensor([1, 5], dtype=torch.int32)), "document_offsets must"),
        ((torch.zeros(5, 1025).char(), OFFSETS, torch.zeros(5, 1025).char(), OFFSETS), "queries .*1024"),
    ],
)
def test_arguments_outside_the_contract_are_refused(arguments: Any, message: str) -> None:
    for call in (ops.maxsim, ops.maxsim.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*arguments)
