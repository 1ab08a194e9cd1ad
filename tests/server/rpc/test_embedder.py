"""Embed and Tokenize over a real connection."""

import asyncio
import time

import grpc
import pytest

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import InvalidRequest, Overloaded
from embedmux.server.records import Encoding, Role
from embedmux.server.requests import Instruction


def request(*texts: str, **fields):
    return embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text=text) for text in texts], **fields)


async def test_every_text_gets_a_row_its_tokens_and_its_space(running):
    reply = await running.embedder.Embed(request("a", "bcd", request_id="r1", encoding=types_pb2.ENCODING_INT8))
    assert reply.vectors == b"\x01" * 4 + b"\x03" * 4
    assert (reply.row_bytes, reply.dimensions, reply.encoding) == (4, 4, types_pb2.ENCODING_INT8)
    assert list(reply.num_tokens) == [1, 3]
    assert [reply.spaces[at].id for at in reply.space_index] == ["space", "space"]
    assert reply.request_id == "r1"
    assert await running.observer.ended() == ("Embedder/Embed", "OK")


async def test_one_bad_text_leaves_its_neighbours_their_vectors(running, encoder):
    encoder.errors = {1: InvalidRequest("text 1 is too long")}
    reply = await running.embedder.Embed(request("a", "bb", "ccc"))
    assert [(error.index, error.code, error.message) for error in reply.errors] == [
        (1, grpc.StatusCode.INVALID_ARGUMENT.value[0], "text 1 is too long")
    ]
    assert reply.vectors[:16] == b"\x01" * 16
    assert reply.vectors[32:] == b"\x03" * 16
    assert list(reply.space_index) == [0, 0, 0]


async def test_texts_have_their_own_instruction_or_that_of_the_request(running, encoder):
    message = request("a", "b", "c", dimensions=2, model="m")
    message.instruction.task = "retrieval"
    message.instruction.role = types_pb2.ROLE_QUERY
    message.texts[1].instruction.adapter = "mine"
    message.texts[1].instruction.prompt = ""
    await running.embedder.Embed(message)
    job = encoder.jobs[0]
    assert job.instructions[0] == Instruction(task="retrieval", role=Role.QUERY)
    assert job.instructions[0] is job.instructions[2]
    assert job.instructions[1] == Instruction(adapter="mine", prompt="")
    assert (job.dimensions, job.model, job.encoding, job.texts) == (2, "m", Encoding.FLOAT32, ("a", "b", "c"))


async def test_the_deadline_arrives_on_the_monotonic_clock(running, encoder):
    before = time.monotonic()
    await running.embedder.Embed(request("a"), timeout=30)
    await running.embedder.Embed(request("a"))
    assert before + 29 < encoder.jobs[0].terms.deadline < time.monotonic() + 30.1
    assert encoder.jobs[1].terms.deadline is None


async def test_a_cancelled_call_cancels_the_encoder(running, encoder):
    cancelled = asyncio.Event()

    async def wait(job):
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    encoder.respond = wait
    call = running.embedder.Embed(request("a"))
    await encoder.has_jobs(1)
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_a_deadline_that_passes_cancels_the_encoder(running, encoder):
    cancelled = asyncio.Event()

    async def wait(job):
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    encoder.respond = wait
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.embedder.Embed(request("a"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_a_text_of_ten_megabytes_is_accepted(running, encoder):
    await running.embedder.Embed(request("x" * 10_000_000))
    assert len(encoder.jobs[0].texts[0]) == 10_000_000


async def test_a_request_over_the_configured_size_is_refused(serve, encoder):
    running = await serve(max_message_bytes=1000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.embedder.Embed(request("x" * 1001))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert encoder.jobs == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": 99}, "encoding is 99; this server knows ENCODING_UNSPECIFIED, ENCODING_FLOAT32"),
        ({"truncate": 9}, "truncate is 9; this server knows TRUNCATE_UNSPECIFIED"),
        ({"instruction": types_pb2.Instruction(role=7)}, "role is 7; this server knows ROLE_UNSPECIFIED"),
    ],
)
async def test_an_unknown_enum_value_is_named(running, fields, message):
    with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await running.embedder.Embed(request("a", **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokenize_keeps_the_order_around_a_bad_text(running, encoder):
    encoder.errors = {0: Overloaded("full")}
    message = embed_pb2.TokenizeRequest(texts=[embed_pb2.Text(text="a"), embed_pb2.Text(text="b")])
    reply = await running.embedder.Tokenize(message)
    assert list(reply.texts[0].ids) == []
    assert (list(reply.texts[1].ids), list(reply.texts[1].tokens)) == ([1, 2], ["a", "b"])
    assert (reply.texts[1].prompt, reply.texts[1].num_tokens_original) == ("query: ", 2)
    assert [(error.index, error.code) for error in reply.errors] == [(0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])]
