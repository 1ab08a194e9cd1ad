"""Token vectors and MaxSim against their definition, for every encoding."""

import numpy as np
import pytest

from embedmux.client.errors import UnexpectedReply
from embedmux.client.token_vectors import TokenVectors
from embedmux.client.vectors import concatenate, decode
from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import InvalidRequest, SpaceMismatch
from embedmux.server.records import Encoding, Space

RANDOM = np.random.default_rng(11)
HERE = Space("colbert-96")
DIMENSIONS = 20


def reply(lengths: list[int], encoding: Encoding, wire: bytes, **changes: object) -> embed_pb2.EmbedResponse:
    fields = {
        "encoding": types_pb2.Encoding.Value(f"ENCODING_{encoding.name}"),
        "num_tokens": [9] * len(lengths),
        "num_tokens_original": [9] * len(lengths),
        "space_index": [0] * len(lengths),
        "spaces": [types_pb2.Space(id=HERE.id)],
        "token_rows": lengths,
        "token_dimensions": DIMENSIONS,
        "token_vectors": wire,
    }
    return embed_pb2.EmbedResponse(**{**fields, **changes})


def tokens(lengths: list[int], encoding: Encoding = Encoding.FLOAT32, wire: bytes | None = None) -> TokenVectors:
    if wire is None:
        wire = RANDOM.standard_normal((sum(lengths), DIMENSIONS)).astype("<f4").tobytes()
    found = decode(reply(lengths, encoding, wire), len(lengths), {"outputs": ["tokens"]}).tokens
    assert found is not None
    return found


def maxsim(queries: list[np.ndarray], documents: list[np.ndarray]) -> list[list[float]]:
    return [[float((query @ document.T).max(axis=1).sum()) for document in documents] for query in queries]


def cut(rows: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(lengths)[:-1])


def stored(encoding: Encoding, count: int) -> tuple[bytes, np.ndarray]:
    """Bytes of random rows, and the float64 values whose dot products count."""
    rows = RANDOM.standard_normal((count, DIMENSIONS)).astype(np.float32)
    codes = RANDOM.integers(-128, 128, (count, DIMENSIONS)).astype(np.int8)
    bits = np.packbits(rows > 0, axis=1)
    signs = np.where(rows > 0, 1.0, -1.0) / np.sqrt(DIMENSIONS)
    cut_bits = (rows.view(np.uint32) >> 16).astype("<u2")
    return {
        Encoding.FLOAT32: (rows.tobytes(), rows),
        Encoding.FLOAT16: (rows.astype("<f2").tobytes(), rows.astype(np.float16)),
        Encoding.BFLOAT16: (cut_bits.tobytes(), (cut_bits.astype(np.uint32) << 16).view(np.float32)),
        Encoding.INT8: (codes.tobytes(), codes),
        Encoding.UINT8: ((codes.astype(np.int16) + 128).astype(np.uint8).tobytes(), codes),
        Encoding.BINARY: ((bits.astype(np.int16) - 128).astype(np.int8).tobytes(), signs),
        Encoding.UBINARY: (bits.tobytes(), signs),
    }[encoding]


@pytest.mark.parametrize("encoding", list(Encoding), ids=lambda encoding: encoding.value)
def test_maxsim_adds_up_the_greatest_dot_product_of_each_query_token(encoding: Encoding) -> None:
    query_lengths, document_lengths = [3, 1, 7], [5, 1, 30, 2]
    (query_wire, queries), (document_wire, documents) = stored(encoding, 11), stored(encoding, 38)
    scores = tokens(query_lengths, encoding, query_wire).maxsim(tokens(document_lengths, encoding, document_wire))
    expected = maxsim(
        cut(queries.astype(np.float64), query_lengths), cut(documents.astype(np.float64), document_lengths)
    )
    assert scores.shape == (3, 4) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_texts_without_rows_score_as_the_kernel_says() -> None:
    scores = tokens([2, 0]).maxsim(tokens([0, 3, 0, 1]))
    assert np.isneginf(scores[:, [0, 2]]).all()
    assert np.isfinite(scores[:, [1, 3]]).all() and scores[1, [1, 3]].tolist() == [0, 0]
    assert np.isneginf(tokens([1]).maxsim(tokens([0]))).all()


def test_a_text_has_its_rows_and_texts_are_chosen_as_in_numpy() -> None:
    found = tokens([2, 0, 3])
    assert [len(found.rows_of(text)) for text in range(3)] == [2, 0, 3]
    np.testing.assert_array_equal(found.rows_of(2), found.vectors[2:])
    chosen = found[[2, 0]]
    np.testing.assert_array_equal(chosen.vectors, found.vectors[[2, 3, 4, 0, 1]])
    np.testing.assert_array_equal(chosen.maxsim(found)[0], found.maxsim(found)[2])
    assert found[-1].vectors.flags.writeable and len(found[1:]) == 2


def test_the_score_of_a_pair_does_not_depend_on_its_neighbours() -> None:
    queries, documents = tokens([4, 9]), tokens([6, 11, 3])
    alone = [[queries[i].maxsim(documents[j]).item() for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(queries.maxsim(documents), alone, rtol=1e-6)


def test_two_spaces_and_two_encodings_are_refused() -> None:
    other = tokens([1])
    other.spaces[0] = Space("m3-1024")
    with pytest.raises(SpaceMismatch, match=r"space colbert-96.*space m3-1024"):
        tokens([1]).maxsim(other)
    with pytest.raises(InvalidRequest, match="cannot compare float32 with float16"):
        tokens([1]).maxsim(tokens([1], Encoding.FLOAT16, bytes(2 * DIMENSIONS)))


def test_parts_join_and_rows_are_chosen_with_their_tokens() -> None:
    wires = [stored(Encoding.FLOAT32, count)[0] for count in (3, 4)]
    parts = [
        decode(reply(lengths, Encoding.FLOAT32, wire), 2, {"outputs": ["tokens"]})
        for lengths, wire in zip(([1, 2], [4, 0]), wires, strict=True)
    ]
    joined = concatenate(parts)
    assert joined.tokens is not None
    assert joined.tokens.vectors.tobytes() == b"".join(wires)
    assert np.diff(joined.tokens.offsets).tolist() == [1, 2, 4, 0]
    chosen = joined[[2, 0]].tokens
    assert chosen is not None and np.diff(chosen.offsets).tolist() == [4, 1]


@pytest.mark.parametrize(
    "changes", [{"token_rows": [1]}, {"token_rows": [1, 2]}, {"token_dimensions": 19}, {"token_vectors": b""}], ids=str
)
def test_a_reply_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UnexpectedReply, match="bytes a row"):
        decode(reply([1, 1], Encoding.FLOAT32, bytes(8 * DIMENSIONS), **changes), 2, {"outputs": ["tokens"]})
