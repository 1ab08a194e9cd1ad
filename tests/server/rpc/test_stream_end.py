"""EmbedStream when it does not end by itself: cancel, a killed client, drain, stop."""

import asyncio
import gc

import grpc
import pytest

from embedmux.proto import embed_pb2
from embedmux.server.facts import ServerState
from embedmux.server.records import Encoding, Space
from embedmux.server.requests import EmbedResult

TIMEOUT_S = 20  # of every stream, so that one that hangs fails


def request(number: int) -> embed_pb2.EmbedRequest:
    return embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="x")], request_id=str(number))


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


async def test_a_cancelled_stream_cancels_all_its_work(running, encoder, gate, complaints):
    call = running.embedder.EmbedStream(timeout=TIMEOUT_S)
    for number in range(5):
        await call.write(request(number))
    await encoder.has_jobs(5)
    assert len(tasks_of_streams()) == 6
    call.cancel()
    assert await running.observer.ended() == ("Embedder/EmbedStream", "CANCELLED")
    assert gate.num_cancelled == 5
    assert tasks_of_streams() == []


async def test_a_client_that_is_killed_leaves_no_work_behind(running, encoder, gate, complaints):
    connections: list[asyncio.StreamWriter] = []

    async def pump(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def relay(reader, writer):
        host, port = running.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, port)
        connections.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

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


async def test_a_draining_server_answers_what_it_has_read_and_ends_the_stream(running, encoder, gate):
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


async def test_a_server_that_stops_waits_for_the_answers_but_not_for_idle_streams(running, encoder, gate):
    idle, busy = running.embedder.EmbedStream(timeout=TIMEOUT_S), running.embedder.EmbedStream(timeout=TIMEOUT_S)
    await busy.write(request(1))
    await encoder.has_jobs(1)
    stopping = asyncio.create_task(running.server.stop(grace_s=30))
    assert await idle.code() is grpc.StatusCode.UNAVAILABLE
    gate.open.set()
    assert (await busy.read()).request_id == "1"
    await asyncio.wait_for(stopping, 10)
