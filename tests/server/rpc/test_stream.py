"""EmbedStream: order, window, failures of single requests."""

import asyncio

from embedmux.proto import embed_pb2
from embedmux.server.errors import NotFound, Overloaded
from embedmux.server.records import Encoding, Space
from embedmux.server.requests import EmbedResult

TIMEOUT_S = 20  # of every stream, so that one that hangs fails


def request(number: int, num_texts: int = 1) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="x")] * num_texts, request_id=str(number))


async def send(call, requests) -> None:
    for item in requests:
        await call.write(item)
    await call.done_writing()


async def settle(running) -> None:
    """Gives the server many turns: whatever it was about to read from a stream, it has read."""
    check = running.channel.unary_unary("/grpc.health.v1.Health/Check")
    for _ in range(100):
        await check(b"")


async def test_answers_come_in_the_order_of_the_requests(running, encoder):
    answer, second_is_done = encoder.answer, asyncio.Event()

    async def respond(job):
        if len(job.texts) == 1:
            await second_is_done.wait()
        second_is_done.set()
        return await answer(job)

    encoder.respond = respond
    call = running.embedder.EmbedStream(iter([request(1), request(2, num_texts=2), request(3)]), timeout=TIMEOUT_S)
    assert [(reply.request_id, len(reply.num_tokens)) async for reply in call] == [("1", 1), ("2", 2), ("3", 1)]
    assert await running.observer.ended() == ("Embedder/EmbedStream", "OK")


async def test_an_empty_stream_ends_well(running):
    assert [reply async for reply in running.embedder.EmbedStream(iter([]), timeout=TIMEOUT_S)] == []


async def test_reading_stops_when_the_window_is_full_of_requests(serve, encoder, gate):
    running = await serve(stream={"max_stream_requests": 3})
    call = running.embedder.EmbedStream(map(request, range(20)), timeout=TIMEOUT_S)
    await encoder.has_jobs(3)
    await settle(running)
    assert len(encoder.jobs) == 3
    gate.open.set()
    assert [int(reply.request_id) async for reply in call] == list(range(20))


async def test_reading_stops_when_the_window_is_full_of_texts(serve, encoder, gate):
    running = await serve(stream={"max_stream_texts": 4})
    sizes = [2, 2, 1, 9, 1]
    call = running.embedder.EmbedStream(
        (request(at, num_texts) for at, num_texts in enumerate(sizes)), timeout=TIMEOUT_S
    )
    await encoder.has_jobs(2)
    await settle(running)
    assert len(encoder.jobs) == 2
    gate.open.set()
    assert [len(reply.num_tokens) async for reply in call] == sizes


async def test_a_slow_reader_keeps_the_server_from_computing_ahead(running, encoder):
    row = bytes(1 << 20)

    async def respond(job):
        return EmbedResult(row, Encoding.UINT8, 1 << 20, [1], [1], [Space("s")], {})

    encoder.respond = respond
    call = running.embedder.EmbedStream(timeout=TIMEOUT_S)
    sending = asyncio.create_task(send(call, map(request, range(60))))
    await encoder.has_jobs(8)
    await settle(running)
    # The window of 8, and the few MiB that the two ends of the connection buffer.
    assert len(encoder.jobs) < 30
    assert [int(reply.request_id) async for reply in call] == list(range(60))
    await sending


async def test_a_request_that_fails_leaves_the_stream_going(running, encoder):
    answer = encoder.answer
    failures = {1: NotFound("no task 'x'"), 2: Overloaded("full", retry_after_s=0.2), 3: RuntimeError("secret")}

    async def respond(job):
        if len(job.texts) in failures:
            raise failures[len(job.texts)]
        return await answer(job)

    encoder.respond = respond
    call = running.embedder.EmbedStream(
        iter([request(0, 4), request(1, 1), request(2, 2), request(3, 3), request(4, 4)]),
        metadata=(("x-request-id", "abc"),),
        timeout=TIMEOUT_S,
    )
    replies = [reply async for reply in call]
    assert [reply.request_id for reply in replies] == ["0", "1", "2", "3", "4"]
    assert [reply.HasField("failure") for reply in replies] == [False, True, True, True, False]
    assert [(reply.failure.code, reply.failure.retry_after_ms) for reply in replies[1:4]] == [(5, 0), (8, 200), (13, 0)]
    assert replies[1].failure.message == "no task 'x'"
    assert replies[3].failure.message == "internal error in call abc; the server's log tells more under this id"


async def test_a_request_that_cannot_be_read_leaves_the_stream_going(running):
    raw = [b"\x0a\x03\x0a\x01a", b"\x0a\x03\x0a\x01\xff", b"\x0a\x03\x0a\x01b"]
    call = running.channel.stream_stream(
        "/embedmux.v1.Embedder/EmbedStream", response_deserializer=embed_pb2.EmbedResponse.FromString
    )(iter(raw))
    replies = [reply async for reply in call]
    assert [reply.HasField("failure") for reply in replies] == [False, True, False]
    assert "texts[0].text is not valid UTF-8: byte 0xff at offset 0" in replies[1].failure.message


async def test_work_that_something_dropped_fails_its_request_only(running, encoder):
    answer = encoder.answer

    async def respond(job):
        if len(job.texts) == 2:
            dropped = asyncio.get_running_loop().create_future()
            dropped.cancel()
            await dropped
        return await answer(job)

    encoder.respond = respond
    call = running.embedder.EmbedStream(iter([request(0), request(1, 2), request(2)]), timeout=TIMEOUT_S)
    assert [reply.failure.code async for reply in call] == [0, 13, 0]


async def test_all_streams_share_what_may_be_held_and_each_has_one_request(serve, encoder, gate):
    running = await serve(stream={"max_held_texts": 4})
    calls = [
        running.embedder.EmbedStream((request(at, num_texts=2) for at in range(4)), timeout=TIMEOUT_S) for _ in range(3)
    ]
    await encoder.has_jobs(3)
    await settle(running)
    assert len(encoder.jobs) in (3, 4), "one or two streams hold four texts, each other one has its one request"
    gate.open.set()
    for call in calls:
        assert [int(reply.request_id) async for reply in call] == [0, 1, 2, 3]
