"""Requests that are no valid protobuf are refused with what is wrong with them."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.proto import embed_pb2
from embedmux.server.errors import InvalidRequest
from embedmux.server.rpc.decode import decoder

GOOD = b"\x0a\x03\x0a\x01a"  # texts { text: "a" }
BAD_TEXT = b"\x0a\x05\x0a\x03ab\xff"
BAD_TASK = b"\x0a\x09\x0a\x01a\x12\x04\x0a\x02\xc3\x28"  # texts { text: "a" instruction { task: c3 28 } }


async def refused(running, raw: bytes) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary("/embedmux.v1.Embedder/Embed")(raw)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (GOOD + BAD_TEXT, "texts[1].text is not valid UTF-8: byte 0xff at offset 2"),
        (BAD_TASK, "texts[0].instruction.task is not valid UTF-8: byte 0xc3 at offset 0"),
        (GOOD + b"\x32\x01\x80", "model is not valid UTF-8: byte 0x80 at offset 0"),
    ],
)
async def test_invalid_utf8_is_refused_naming_the_field_and_the_byte(running, encoder, raw, field):
    error = await refused(running, raw)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"{field}; send text encoded as UTF-8"
    assert encoder.jobs == []


async def test_a_document_that_is_no_text_is_named_by_its_place(running, reranker):
    raw = b"\x0a\x01q" + b"\x12\x01a" + b"\x12\x03b\xc3\x28"  # query, documents[0], documents[1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.channel.unary_unary("/embedmux.v1.Reranker/Rerank")(raw)
    assert caught.value.details().startswith("documents[1] is not valid UTF-8: byte 0xc3 at offset 1")
    assert reranker.jobs == []


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\xff\x01abc", b"\x0a"])
async def test_bytes_that_are_no_message_are_refused_naming_the_message(running, raw):
    error = await refused(running, raw)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the {len(raw)} bytes of the request are no embedmux.v1.EmbedRequest" in error.details()
    assert "the same .proto files" in error.details()


async def test_fields_of_a_newer_client_are_let_through(running, encoder):
    await running.channel.unary_unary("/embedmux.v1.Embedder/Embed")(GOOD + b"\xfa\x3f\x02hi")
    assert encoder.jobs[0].texts == ("a",)


@pytest.mark.parametrize("message", [embed_pb2.EmbedRequest, embed_pb2.TokenizeRequest])
def test_a_decoder_returns_its_error(message):
    decode = decoder(message.DESCRIPTOR)
    assert isinstance(decode(b"\xff"), InvalidRequest)
    assert isinstance(decode(BAD_TEXT), InvalidRequest)
    assert decode(GOOD).texts[0].text == "a"


@settings(deadline=None)  # the machine that runs this may be busy
@given(st.binary(max_size=40), st.integers(0, 40))
def test_no_bytes_make_a_decoder_raise(noise, at):
    valid = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="añ")], model="m", dimensions=300).SerializeToString()
    decode = decoder(embed_pb2.EmbedRequest.DESCRIPTOR)
    for raw in (noise, valid[:at] + noise + valid[at:]):
        assert isinstance(decode(raw), embed_pb2.EmbedRequest | InvalidRequest)
