"""Decoding against numpy, for every encoding, and what a reply must not get away with."""

import numpy as np
import pytest

from embedmux.client.errors import UnexpectedReply
from embedmux.client.texts import EmbedOptions
from embedmux.client.vectors import Embeddings, concatenate, decode
from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import NotFound, Overloaded
from embedmux.server.records import Encoding, Space

ROWS = np.random.default_rng(7).standard_normal((3, 20)).astype(np.float32)
CODES = np.random.default_rng(8).integers(-128, 128, (3, 20)).astype(np.int8)
BITS = np.packbits(ROWS > 0, axis=1)
BFLOAT16_BITS = (ROWS.view(np.uint32) >> 16).astype(np.uint16)
CASES = {
    "float32": (ROWS, ROWS),
    "float16": (ROWS.astype(np.float16), ROWS.astype(np.float16)),
    "bfloat16": (BFLOAT16_BITS, (BFLOAT16_BITS.astype(np.uint32) << 16).view(np.float32)),
    "int8": (CODES, CODES),
    "uint8": ((CODES.astype(np.int16) + 128).astype(np.uint8), (CODES.astype(np.int16) + 128).astype(np.uint8)),
    "binary": ((BITS.astype(np.int16) - 128).astype(np.int8), (BITS.astype(np.int16) - 128).astype(np.int8)),
    "ubinary": (BITS, BITS),
}


def reply(wire: np.ndarray, encoding: str, **changes: object) -> embed_pb2.EmbedResponse:
    little = wire.astype(wire.dtype.newbyteorder("<"))
    fields = {
        "vectors": little.tobytes(),
        "row_bytes": little[0].nbytes,
        "encoding": types_pb2.Encoding.Value(f"ENCODING_{encoding.upper()}"),
        "dimensions": 20,
        "num_tokens": [4] * len(wire),
        "num_tokens_original": [4, 9, 4],
        "space_index": [0, 1, 0],
        "spaces": [types_pb2.Space(id="a", calibration="c"), types_pb2.Space(id="b")],
    }
    return embed_pb2.EmbedResponse(**{**fields, **changes})


@pytest.mark.parametrize("encoding", CASES)
def test_every_encoding_decodes_to_the_values_that_were_sent(encoding: str) -> None:
    wire, expected = CASES[encoding]
    embeddings = decode(reply(wire, encoding), 3)
    assert embeddings.encoding is Encoding(encoding)
    assert embeddings.vectors.dtype == expected.dtype
    np.testing.assert_array_equal(embeddings.vectors, expected)
    assert embeddings.vectors.flags.writeable


def test_a_reply_says_per_text_where_it_lives_and_what_was_cut() -> None:
    embeddings = decode(reply(ROWS, "float32"), 3)
    assert embeddings.spaces == [Space("a", "c"), Space("b"), Space("a", "c")]
    assert embeddings.truncated.tolist() == [False, True, False]
    assert embeddings.dimensions == 20 and len(embeddings) == 3


def test_a_failed_text_has_an_exception_and_no_space() -> None:
    error = types_pb2.TextError(index=1, code=5, message="task 'sport' is not here")
    embeddings = decode(reply(ROWS, "float32", errors=[error], space_index=[0, 7, 0]), 3)
    assert embeddings.spaces[1] is None
    assert isinstance(embeddings.errors[1], NotFound)
    with pytest.raises(NotFound, match=r"^text 1: task 'sport' is not here$"):
        embeddings.raise_for_errors()


def test_the_first_failure_counts_the_others_and_keeps_its_push_back() -> None:
    embeddings = decode(reply(ROWS, "float32"), 3)
    embeddings.errors.update({2: NotFound("no task"), 1: Overloaded("full", retry_after_s=3.5)})
    with pytest.raises(Overloaded, match=r"text 1: full \(and 1 more of 3 texts failed\)") as caught:
        embeddings.raise_for_errors()
    assert caught.value.retry_after_s == 3.5


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": b"\0" * 239},
        {"row_bytes": 79},
        {"num_tokens": [4, 4]},
        {"space_index": [0, 0]},
        {"space_index": [0, 2, 0]},
        {"errors": [types_pb2.TextError(index=3, code=5)]},
        {"dimensions": 21},
    ],
    ids=str,
)
def test_a_reply_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UnexpectedReply):
        decode(reply(ROWS, "float32", **changes), 3)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"outputs": ["dense", "sparse"]}, {}),
        ({"outputs": ["tokens"]}, {}),
        ({"echo": True}, {}),
        ({"echo": True}, {"rendered": ["a", "b"]}),
        ({}, {"rendered": ["a", "b", "c"]}),
        ({}, {"vectors": b"", "row_bytes": 0, "dimensions": 0}),
    ],
    ids=str,
)
def test_a_reply_without_what_was_asked_for_is_refused(options: EmbedOptions, changes: dict[str, object]) -> None:
    with pytest.raises(UnexpectedReply):
        decode(reply(ROWS, "float32", **changes), 3, options)


def test_rendered_texts_stay_with_their_rows() -> None:
    parts = [decode(reply(ROWS, "float32", rendered=list(names)), 3, {"echo": True}) for names in ("abc", "def")]
    assert concatenate(parts).rendered == list("abcdef")
    assert concatenate(parts)[[4, 0]].rendered == ["e", "a"]
    assert decode(reply(ROWS, "float32"), 3)[[1]].rendered == []


def test_an_encoding_this_client_does_not_know_is_refused() -> None:
    with pytest.raises(UnexpectedReply, match="encoding 99, this client knows 1 to 7"):
        decode(embed_pb2.EmbedResponse(encoding=99), 0)


def test_rows_are_chosen_as_in_numpy_and_keep_what_is_said_of_them() -> None:
    embeddings = decode(reply(ROWS, "float32", errors=[types_pb2.TextError(index=2, code=5, message="no")]), 3)
    chosen = embeddings[[2, 0]]
    np.testing.assert_array_equal(chosen.vectors, ROWS[[2, 0]])
    assert chosen.spaces == [None, Space("a", "c")]
    assert list(chosen.errors) == [0]
    assert len(embeddings[1]) == 1 and embeddings[-2].spaces == [Space("b")]
    assert len(embeddings[np.array([True, True, False])]) == 2
    with pytest.raises(IndexError):
        embeddings[3]


def test_parts_join_in_order_with_their_errors_moved() -> None:
    error = types_pb2.TextError(index=0, code=3, message="too long")
    parts = [decode(reply(ROWS, "float32"), 3), decode(reply(ROWS[::-1], "float32", errors=[error]), 3)]
    joined = concatenate(parts)
    np.testing.assert_array_equal(joined.vectors, np.concatenate([ROWS, ROWS[::-1]]))
    assert list(joined.errors) == [3] and len(joined) == 6
    assert joined.spaces[2:5] == [Space("a", "c"), None, Space("b")]


def test_embeddings_hold_no_second_copy_when_there_is_one_part() -> None:
    part = decode(reply(ROWS, "float32"), 3)
    assert concatenate([part]) is part
    assert isinstance(part, Embeddings)
