"""EmbedStream: order, window, failures, cancel, drain."""

import asyncio
import gc

import grpc
import pytest

from embedmux.proto import embed_pb2
from embedmux.server.errors import NotFound, Overloaded
from embedmux.server.records import EmbedResult, Encoding, ServerState, Space

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


class Gate:
    """An encoder's answer that waits until it is let through, and counts how many were cancelled instead."""

    def __init__(self, encoder) -> None:
        self.open = asyncio.Event()
        self.num_cancelled = 0
        self._answer = encoder.answer
        encoder.respond = self

    async def __call__(self, job):
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            for _ in range(50):  # dropping work takes its time, and the stream waits for it
                await asyncio.sleep(0)
            self.num_cancelled += 1
            raise
        return await self._answer(job)


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


async def test_reading_stops_when_the_window_is_full_of_requests(serve, encoder):
    running = await serve(stream={"max_stream_requests": 3})
    gate = Gate(encoder)
    call = running.embedder.EmbedStream(map(request, range(20)), timeout=TIMEOUT_S)
    await encoder.has_jobs(3)
    await settle(running)
    assert len(encoder.jobs) == 3
    gate.open.set()
    assert [int(reply.request_id) async for reply in call] == list(range(20))


async def test_reading_stops_when_the_window_is_full_of_texts(serve, encoder):
    running = await serve(stream={"max_stream_texts": 4})
    gate = Gate(encoder)
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
    # The window of 8, and what the two ends of the connection buffer.
    assert len(encoder.jobs) <= 16
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


def tasks_of_streams() -> list[asyncio.Task]:
    return [task for task in asyncio.all_tasks() if "AnswerStream" in repr(task.get_coro())]


@pytest.fixture
async def complaints():
    """What asyncio reports when a task or its exception is lost."""
    heard: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    gc.collect()
    await asyncio.sleep(0)
    assert heard == []


async def test_a_cancelled_stream_cancels_all_its_work(running, encoder, complaints):
    gate = Gate(encoder)
    call = running.embedder.EmbedStream(timeout=TIMEOUT_S)
    for number in range(5):
        await call.write(request(number))
    await encoder.has_jobs(5)
    assert len(tasks_of_streams()) == 6
    call.cancel()
    assert await running.observer.ended() == ("Embedder/EmbedStream", "CANCELLED")
    assert gate.num_cancelled == 5
    assert tasks_of_streams() == []


async def test_a_client_that_is_killed_leaves_no_work_behind(running, encoder, complaints):
    connections: list[asyncio.StreamWriter] = []

    async def pump(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def relay(reader, writer):
        host, port = running.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, port)
        connections.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    gate = Gate(encoder)
    async with await asyncio.start_server(relay, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/embedmux.v1.Embedder/EmbedStream")()
            for number in range(3):
                await call.write(request(number).SerializeToString())
            await encoder.has_jobs(3)
            for connection in connections:
                connection.transport.abort()
            assert await running.observer.ended() == ("Embedder/EmbedStream", "CANCELLED")
            assert gate.num_cancelled == 3
            assert tasks_of_streams() == []
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_whose_answers_nobody_reads_can_be_cancelled(running, encoder, complaints):
    async def respond(job):
        return EmbedResult(bytes(1 << 20), Encoding.UINT8, 1 << 20, [1], [1], [Space("s")], {})

    encoder.respond = respond
    call = running.embedder.EmbedStream(timeout=TIMEOUT_S)
    for number in range(12):
        await call.write(request(number))
    await encoder.has_jobs(8)
    call.cancel()
    assert await running.observer.ended() == ("Embedder/EmbedStream", "CANCELLED")
    assert tasks_of_streams() == []


async def test_a_draining_server_answers_what_it_has_read_and_ends_the_stream(running, encoder):
    gate = Gate(encoder)
    call = running.embedder.EmbedStream(timeout=TIMEOUT_S)
    for number in range(4):
        await call.write(request(number))
    await encoder.has_jobs(4)
    running.lifecycle.set(ServerState.DRAINING)
    gate.open.set()
    assert [(await call.read()).request_id for _ in range(4)] == ["0", "1", "2", "3"]
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == (
        "the server is draining; the first 4 requests of this stream were answered, send the others on a new connection"
    )
    assert tasks_of_streams() == []


async def test_a_server_that_stops_waits_for_the_answers_but_not_for_idle_streams(running, encoder):
    gate = Gate(encoder)
    idle, busy = running.embedder.EmbedStream(timeout=TIMEOUT_S), running.embedder.EmbedStream(timeout=TIMEOUT_S)
    await busy.write(request(1))
    await encoder.has_jobs(1)
    stopping = asyncio.create_task(running.server.stop(grace_s=30))
    assert await idle.code() is grpc.StatusCode.UNAVAILABLE
    gate.open.set()
    assert (await busy.read()).request_id == "1"
    await asyncio.wait_for(stopping, 10)
