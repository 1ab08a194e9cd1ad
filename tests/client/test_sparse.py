"""Sparse weights against dictionaries, and what a reply must not get away with."""

import numpy as np
import pytest

from embedmux.client.errors import UnexpectedReply
from embedmux.client.sparse import SparseWeights, decode_sparse
from embedmux.client.vectors import concatenate, decode
from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import InvalidRequest, NotFound, SpaceMismatch
from embedmux.server.records import Space

HERE = Space("m3-1024")


def sparse(*texts: dict[int, float], space: Space = HERE) -> SparseWeights:
    return decode_sparse(reply(*texts), [space] * len(texts), {})


def reply(*texts: dict[int, float], **changes: object) -> embed_pb2.EmbedResponse:
    fields = {
        "encoding": types_pb2.ENCODING_FLOAT32,
        "num_tokens": [5] * len(texts),
        "num_tokens_original": [5] * len(texts),
        "space_index": [0] * len(texts),
        "spaces": [types_pb2.Space(id=HERE.id)],
        "sparse_lengths": [len(text) for text in texts],
        "sparse_ids": np.array([id for text in texts for id in text], "<u4").tobytes(),
        "sparse_weights": np.array([weight for text in texts for weight in text.values()], "<f4").tobytes(),
    }
    return embed_pb2.EmbedResponse(**{**fields, **changes})


def random_texts(seed: int, count: int, *, vocabulary: int) -> list[dict[int, float]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, count)
    ids = [random.choice(vocabulary, length, replace=False) for length in lengths]
    return [{int(id): float(np.float32(random.random())) for id in text} for text in ids]


def expected(first: list[dict[int, float]], second: list[dict[int, float]]) -> list[list[float]]:
    return [[sum(a[id] * b[id] for id in a.keys() & b.keys()) for b in second] for a in first]


@pytest.mark.parametrize(("rows", "columns"), [(3, 17), (17, 3), (1, 1), (5, 5)])
@pytest.mark.parametrize("vocabulary", [41, 250_000])
def test_scores_are_the_products_over_shared_ids(rows: int, columns: int, vocabulary: int) -> None:
    first, second = (random_texts(seed, count, vocabulary=vocabulary) for seed, count in ((1, rows), (2, columns)))
    scores = sparse(*first).dot(sparse(*second))
    assert scores.shape == (rows, columns) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(first, second), rtol=1e-6, atol=1e-7)
    if vocabulary == 41 and rows * columns > 1:
        assert (scores > 0).any()


def test_texts_without_weights_or_shared_ids_score_zero() -> None:
    scores = sparse({}, {4_294_967_295: 2.0}, {7: 1.0}).dot(sparse({8: 1.0}, {4_294_967_295: 3.0}, {}))
    np.testing.assert_array_equal(scores, [[0, 0, 0], [0, 6, 0], [0, 0, 0]])
    assert sparse({}, {}).dot(sparse({1: 1.0}, {})).tolist() == [[0, 0], [0, 0]]
    assert sparse().dot(sparse({1: 1.0})).shape == (0, 1)


def test_a_text_is_a_dictionary_and_texts_are_chosen_as_in_numpy() -> None:
    texts = [{3: 0.5, 1: 0.25}, {}, {9: 1.0}]
    weights = sparse(*texts)
    assert [weights.weights_of(text) for text in range(3)] == texts
    chosen = weights[[2, 0]]
    assert [chosen.weights_of(text) for text in range(2)] == [texts[2], texts[0]]
    assert len(weights[-1]) == 1 and weights[-1].weights_of(0) == {9: 1.0}
    assert weights[np.array([True, False, True])].ids.tolist() == [3, 1, 9]
    with pytest.raises(IndexError):
        weights.weights_of(3)


def test_weights_of_two_spaces_are_refused_naming_both() -> None:
    with pytest.raises(SpaceMismatch, match=r"space m3-1024.*space other-1024"):
        sparse({1: 1.0}).dot(sparse({1: 1.0}, space=Space("other-1024")))


def test_a_failed_text_has_no_weights_and_is_refused() -> None:
    error = types_pb2.TextError(index=1, code=5, message="no task")
    embeddings = decode(reply({1: 1.0}, {}, errors=[error]), 2, {"outputs": ["sparse"]})
    assert embeddings.sparse is not None and embeddings.sparse.weights_of(1) == {}
    assert isinstance(embeddings.sparse.errors[1], NotFound)
    with pytest.raises(InvalidRequest, match="text 1 of the second embeddings has no vector \\(no task\\)"):
        embeddings.sparse[0].dot(embeddings.sparse)


def test_parts_join_and_rows_are_chosen_with_their_weights() -> None:
    parts = [decode(reply(*texts), len(texts), {"outputs": "sparse"}) for texts in ([{1: 1.0}, {}], [{2: 2.0, 3: 3.0}])]
    joined = concatenate(parts)
    assert joined.sparse is not None
    assert [joined.sparse.weights_of(text) for text in range(3)] == [{1: 1.0}, {}, {2: 2.0, 3: 3.0}]
    chosen = joined[[2]].sparse
    assert chosen is not None and chosen.weights_of(0) == {2: 2.0, 3: 3.0}
    assert joined.tokens is None and joined.dimensions == 0 and joined.vectors.shape == (3, 0)


@pytest.mark.parametrize(
    "changes",
    [{"sparse_lengths": [1]}, {"sparse_lengths": [1, 2]}, {"sparse_ids": b"1234"}, {"sparse_weights": b""}],
    ids=str,
)
def test_a_reply_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UnexpectedReply, match="of 4 bytes each"):
        decode(reply({1: 1.0}, {2: 1.0}, **changes), 2, {"outputs": ["sparse"]})
