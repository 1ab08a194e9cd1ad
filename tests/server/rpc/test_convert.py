"""Proto <-> records without a server."""

import pytest

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import InvalidRequest, NotFound
from embedmux.server.records import ANY_TERMS, Encoding, Output, Role, Space, Truncate
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
    job = convert.embed_job(request, terms=ANY_TERMS)
    assert job.instructions[0] == Instruction()
    assert job.instructions[1] is job.instructions[3]
    assert job.instructions[5] == Instruction(task="retrieval", role=Role.DOCUMENT)
    assert len({id(instruction) for instruction in job.instructions}) == 3


def test_an_unset_prompt_is_none_and_an_empty_one_is_empty():
    assert convert.instruction(types_pb2.Instruction()).prompt is None
    assert convert.instruction(types_pb2.Instruction(prompt="")).prompt == ""


def test_an_unset_instruction_is_none_and_its_words_arrive_as_they_are():
    assert convert.instruction(types_pb2.Instruction(task="t")).instruction is None
    assert convert.instruction(types_pb2.Instruction(instruction=" find {cats} ")).instruction == " find {cats} "


def test_no_outputs_are_the_dense_vector_and_named_ones_stand_in_the_order_of_a_row():
    assert convert.embed_job(embed_pb2.EmbedRequest(), terms=ANY_TERMS).outputs == (Output.DENSE,)
    numbers = [types_pb2.OUTPUT_TOKENS, types_pb2.OUTPUT_UNSPECIFIED, types_pb2.OUTPUT_TOKENS, types_pb2.OUTPUT_SPARSE]
    job = convert.embed_job(embed_pb2.EmbedRequest(outputs=numbers), terms=ANY_TERMS)
    assert job.outputs == (Output.DENSE, Output.SPARSE, Output.TOKENS)
    with pytest.raises(InvalidRequest, match="output is 9; this server knows OUTPUT_UNSPECIFIED, OUTPUT_DENSE"):
        convert.embed_job(embed_pb2.EmbedRequest(outputs=[9]), terms=ANY_TERMS)


def test_force_dimensions_and_echo_reach_the_job():
    asked = convert.embed_job(embed_pb2.EmbedRequest(force_dimensions=True, echo=True), terms=ANY_TERMS)
    assert (asked.forces_dimensions, asked.echoes) == (True, True)
    plain = convert.embed_job(embed_pb2.EmbedRequest(), terms=ANY_TERMS)
    assert (plain.forces_dimensions, plain.echoes) == (False, False)


def test_every_encoding_role_and_truncation_of_the_proto_has_a_record():
    assert set(convert.ENCODINGS) == set(types_pb2.Encoding.values())
    assert set(convert.ROLES) == set(types_pb2.Role.values())
    assert set(convert.TRUNCATES) == set(types_pb2.Truncate.values())
    assert set(convert.ENCODING_NUMBERS) == set(Encoding)
    assert set(convert.TRUNCATES.values()) == set(Truncate)
    assert set(convert.OUTPUTS) == set(types_pb2.Output.values())
    assert set(convert.OUTPUT_NUMBERS) == set(Output) - {Output.SCORE}
    for output, number in convert.OUTPUT_NUMBERS.items():
        assert types_pb2.Output.Name(number) == f"OUTPUT_{output.name}"
    for role, number in convert.ROLE_NUMBERS.items():
        assert types_pb2.Role.Name(number) == f"ROLE_{role.name if role else 'UNSPECIFIED'}"
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


def test_sparse_weights_and_token_vectors_travel_as_bytes_text_after_text():
    spaces = [Space("s"), Space("s"), None]
    sparse = [(bytes(range(8)), bytes(range(8, 16))), (b"abcd" * 50, b"efgh" * 50), (b"", b"")]
    tokens = [bytes(12) * 30, b"tokens here." * 2, b""]
    given = EmbedResult(
        b"v" * 48, Encoding.FLOAT16, 8, [3] * 3, [5] * 3, spaces, {2: NotFound("no")},
        sparse=sparse, token_vectors=tokens, token_dimensions=6, rendered=["query: a", "query: b", ""],
    )  # fmt: skip
    everything = (Output.DENSE, Output.SPARSE, Output.TOKENS)
    reply = embed_pb2.EmbedResponse.FromString(convert.embed_reply(given, request_id="r", outputs=everything))
    assert (reply.vectors, reply.row_bytes, reply.dimensions) == (b"v" * 48, 16, 8)
    assert list(reply.sparse_lengths) == [2, 50, 0]
    assert reply.sparse_ids == bytes(range(8)) + b"abcd" * 50
    assert reply.sparse_weights == bytes(range(8, 16)) + b"efgh" * 50
    assert list(reply.token_rows) == [30, 2, 0] and reply.token_dimensions == 6
    assert reply.token_vectors == b"".join(tokens)
    assert list(reply.rendered) == ["query: a", "query: b", ""]
    assert reply.request_id == "r" and reply.errors[0].index == 2


def test_without_the_dense_output_there_are_no_vectors_and_no_dimensions():
    given = EmbedResult(b"", Encoding.FLOAT32, 8, [3], [3], [Space("s")], {}, sparse=[(b"\1\0\0\0", b"\0\0\x80?")])
    reply = embed_pb2.EmbedResponse.FromString(convert.embed_reply(given, request_id="", outputs=(Output.SPARSE,)))
    assert (reply.vectors, reply.row_bytes, reply.dimensions) == (b"", 0, 0)
    assert list(reply.sparse_lengths) == [1] and list(reply.token_rows) == []
    assert list(reply.space_index) == [0] and reply.spaces[0].id == "s"
