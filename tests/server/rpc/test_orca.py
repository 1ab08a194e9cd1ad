"""Load reports in trailers: who gets one, and what an independent reader of ORCA's message finds in it.

gRPC's own client keeps the key of reports from the application, so they are read from the bytes on the wire.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from embedmux.proto import embed_pb2, embed_pb2_grpc
from embedmux.server.bridge.board import Room
from embedmux.server.bridge.load import load_of
from embedmux.server.errors import Overloaded
from embedmux.server.facts import Load
from embedmux.server.records import Priority
from embedmux.server.requests import EmbedJob, EmbedResult
from embedmux.server.rpc.orca import REPORT, LoadReports, encode

REQUEST = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="abcde")])
ASKS = (("endpoint-load-metrics-format", "bin"),)
BUSY = Load(busy=0.75, queue_seconds=0.5, queued_tokens=700, num_adapters=4)
# The message as xds/data/orca/v3/orca_load_report.proto publishes it; types are numbers of FieldDescriptorProto.Type.
DOUBLE, UINT64 = 1, 4
SCALARS = {"cpu_utilization": (1, DOUBLE), "mem_utilization": (2, DOUBLE), "rps": (3, UINT64)}
SCALARS |= {"rps_fractional": (6, DOUBLE), "eps": (7, DOUBLE), "application_utilization": (9, DOUBLE)}
MAPS = {"request_cost": 4, "utilization": 5, "named_metrics": 8}


def published() -> Any:
    """The message's class, from a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    for name, (number, kind) in SCALARS.items():
        message.field.add(name=name, number=number, type=kind, label=1)
    for name, number in MAPS.items():
        entry = message.nested_type.add(name="".join(map(str.capitalize, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=9, label=1)
        entry.field.add(name="value", number=2, type=DOUBLE, label=1)
        kind = f".xds.data.orca.v3.OrcaLoadReport.{entry.name}"
        message.field.add(name=name, number=number, type=11, label=3, type_name=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))


def read(raw: bytes) -> Any:
    return published().FromString(raw)


class Tap:
    """A connection to the server on which what it answers is kept."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.embedder: Any = None

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps: bool) -> None:
        try:
            while data := await reader.read(1 << 16):
                if keeps:
                    self.heard += data
                writer.write(data)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @property
    def report(self) -> Any:
        """The message of the last report, None if there was none."""
        _, found, after = self.heard.rpartition(REPORT.encode())
        if not found:
            return None
        # HPACK, not Huffman-coded: the value's length is 127 in the 7-bit prefix and what one more byte adds; then the
        # zero by which C-core marks a value that is not in base64.
        assert (after[0], after[2]) == (127, 0)
        size, start = 127 + after[1], 2
        return read(bytes(after[start + 1 : start + size]))


@pytest.fixture
async def tap(serve) -> AsyncIterator[Callable[..., Any]]:
    """``await tap(reports)`` -> a Tap on a new server."""
    closing = contextlib.AsyncExitStack()

    async def start(reports: LoadReports) -> Tap:
        running, found = await serve(reports=reports), Tap()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, _, port = running.address.rpartition(":")
            back, forth = await asyncio.open_connection(host, int(port))
            tasks.add(asyncio.create_task(found.carry(reader, forth, keeps=False)))
            tasks.add(asyncio.create_task(found.carry(back, writer, keeps=True)))

        proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        found.embedder = embed_pb2_grpc.EmbedderStub(channel)

        async def close() -> None:
            await channel.close()
            proxy.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        closing.push_async_callback(close)
        return found

    yield start
    await closing.aclose()


def test_an_independent_reader_finds_every_field() -> None:
    found = read(encode(BUSY, calls=12.5, errors=0.25, num_tokens=300))
    assert dict(found.request_cost) == {"tokens": 300.0}
    assert dict(found.named_metrics) == {"queue_seconds": 0.5, "queued_tokens": 700.0, "adapters_resident": 4.0}
    assert (found.rps_fractional, found.eps, found.application_utilization) == (12.5, 0.25, 1.25)
    assert (found.cpu_utilization, found.mem_utilization, found.rps, dict(found.utilization)) == (0.0, 0.0, 0, {})


@pytest.mark.parametrize("asked", ["bin", "json", "text", "TEXT"])
async def test_a_call_that_asks_gets_a_report_with_its_own_cost(tap, encoder, asked: str) -> None:
    async def answer(job: EmbedJob) -> EmbedResult:
        job.terms.notes.num_tokens += 7  # as the link to the engine does
        return await encoder.answer(job)

    encoder.respond = answer
    line = await tap(LoadReports(lambda: BUSY, sends_always=False))
    call = line.embedder.Embed(REQUEST, metadata=(("endpoint-load-metrics-format", asked), ("x-request-id", "a")))
    await call
    found = line.report
    assert (dict(found.request_cost), found.application_utilization) == ({"tokens": 7.0}, 1.25)
    assert dict(await call.trailing_metadata())["x-request-id"] == "a"


async def test_a_call_that_does_not_ask_gets_none_unless_all_do(tap) -> None:
    for sends_always, metadata in ((False, ()), (False, (("endpoint-load-metrics-format", "xml"),)), (True, ())):
        line = await tap(LoadReports(lambda: BUSY, sends_always=sends_always))
        await line.embedder.Embed(REQUEST, metadata=metadata)
        assert (line.report is not None) == sends_always


async def test_a_refusal_and_a_stream_carry_their_reports_too(tap, encoder) -> None:
    line = await tap(LoadReports(lambda: BUSY, sends_always=False))
    stream = line.embedder.EmbedStream(iter([REQUEST, REQUEST]), metadata=ASKS)
    assert len([answer async for answer in stream]) == 2
    assert line.report.named_metrics["queued_tokens"] == 700

    async def full(job: EmbedJob) -> EmbedResult:
        raise Overloaded("the queue is full", retry_after_s=0.5)

    encoder.respond = full
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        line.heard.clear()
        await line.embedder.Embed(REQUEST, metadata=ASKS)
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "500"
    assert line.report.application_utilization == 1.25


async def test_rates_are_those_of_the_last_window(tap) -> None:
    now = [100.0]
    reports = LoadReports(lambda: BUSY, sends_always=True, clock=lambda: now[0])
    ended: Callable[..., None] = reports.ended
    for status in (grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
        ended(None, status, 100.5)
    ended(None, grpc.StatusCode.OK, 102.0)
    line = await tap(reports)
    now[0] = 102.5
    await line.embedder.Embed(REQUEST)
    found = line.report
    assert (found.rps_fractional, found.eps) == (2.0, 0.5)


class Linked:
    """An engine that said so much, and its board."""

    def __init__(self, *snapshots: dict[str, Any]) -> None:
        self.link: Any = self
        self.board: Any = self
        self.before, self.snapshot = snapshots
        self.adapters = [{"a": None, "b": None}, {"c": None}]
        self.lost = self
        self.queued = (90, 3)

    def done(self) -> bool:
        return False

    def lines(self) -> dict[Any, Any]:
        return {(1, Priority.BULK): Room(5, 5, 0.0)}


def snapshot(at: float, *seconds: float) -> dict[str, Any]:
    return {"at": at, "stats": {"compute_seconds": [[place, {"sum": sum_}] for place, sum_ in enumerate(seconds)]}}


def test_busy_is_the_share_of_time_between_two_snapshots() -> None:
    found = load_of(Linked(snapshot(10.0, 1.0, 2.0), snapshot(12.0, 1.5, 2.25)))  # type: ignore[arg-type]
    assert found == Load(busy=0.375, queue_seconds=0.0, queued_tokens=90, num_adapters=3)
    assert load_of(Linked({}, snapshot(12.0, 1.5))).busy == 0.0  # type: ignore[arg-type]


def test_no_message_of_that_name_stands_in_the_pool() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport")
