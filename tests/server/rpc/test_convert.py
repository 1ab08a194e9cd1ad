"""Proto <-> records without a server."""

import pytest

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import NotFound
from embedmux.server.records import Encoding, Role, Space, Truncate
from embedmux.server.requests import EmbedResult, Instruction
from embedmux.server.rpc import convert


def result(vectors: bytes, spaces: list[Space | None], errors=None, encoding=Encoding.FLOAT32) -> EmbedResult:
    num_texts = len(spaces)
    return EmbedResult(vectors, encoding, 8, [3] * num_texts, [5] * num_texts, spaces, errors or {})


def test_equal_instructions_of_a_request_become_one_object():
    request = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text=str(number)) for number in range(6)])
    for number in (1, 3, 5):
        request.texts[number].instruction.task = "retrieval"
        request.texts[number].instruction.role = types_pb2.ROLE_QUERY if number < 5 else types_pb2.ROLE_DOCUMENT
    job = convert.embed_job(request, deadline=None)
    assert job.instructions[0] == Instruction()
    assert job.instructions[1] is job.instructions[3]
    assert job.instructions[5] == Instruction(task="retrieval", role=Role.DOCUMENT)
    assert len({id(instruction) for instruction in job.instructions}) == 3


def test_an_unset_prompt_is_none_and_an_empty_one_is_empty():
    assert convert.instruction(types_pb2.Instruction()).prompt is None
    assert convert.instruction(types_pb2.Instruction(prompt="")).prompt == ""


def test_every_encoding_role_and_truncation_of_the_proto_has_a_record():
    assert set(convert.ENCODINGS) == set(types_pb2.Encoding.values())
    assert set(convert.ROLES) == set(types_pb2.Role.values())
    assert set(convert.TRUNCATES) == set(types_pb2.Truncate.values())
    assert set(convert.ENCODING_NUMBERS) == set(Encoding)
    assert set(convert.TRUNCATES.values()) == set(Truncate)
    for encoding, number in convert.ENCODING_NUMBERS.items():
        assert types_pb2.Encoding.Name(number) == f"ENCODING_{encoding.name}"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 5_000_000])
def test_vectors_of_any_size_arrive_whole(size):
    vectors = bytes(range(256)) * (size // 256) + bytes(size % 256)
    reply = embed_pb2.EmbedResponse.FromString(convert.embed_reply(result(vectors, [Space("s")]), request_id="r"))
    assert reply == embed_pb2.EmbedResponse(
        vectors=vectors,
        row_bytes=32,
        encoding=types_pb2.ENCODING_FLOAT32,
        dimensions=8,
        num_tokens=[3],
        num_tokens_original=[5],
        space_index=[0],
        spaces=[types_pb2.Space(id="s")],
        request_id="r",
    )


def test_each_space_is_sent_once():
    spaces = [Space("a"), Space("b", "c1"), Space("a"), None, Space("b", "c1")]
    raw = convert.embed_reply(result(b"", spaces, {3: NotFound("no task 'x'")}, Encoding.BINARY), request_id="")
    reply = embed_pb2.EmbedResponse.FromString(raw)
    assert list(reply.space_index) == [0, 1, 0, 0, 1]
    assert [(space.id, space.calibration) for space in reply.spaces] == [("a", ""), ("b", "c1")]
    assert reply.row_bytes == 1
    assert reply.errors[0] == types_pb2.TextError(index=3, code=5, message="no task 'x'")
