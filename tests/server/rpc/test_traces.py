"""Traces: which calls have spans, whose children they are, what stands in them and what never does."""

import asyncio
import sys
import timeit
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from embedmux.proto import embed_pb2
from embedmux.server.cli import missing_package
from embedmux.server.config import ServeConfig
from embedmux.server.errors import EngineFailure, InvalidConfig, InvalidRequest
from embedmux.server.front import Front
from embedmux.server.records import Notes, Terms
from embedmux.server.rpc import traces
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.traces import Traces, exporting

REQUEST = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="confidential"), embed_pb2.Text(text="words")])
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-00")
MOST_US = 3.0


class Collected:
    """Traces into memory."""

    def __init__(self, ratio: float = 0.0, draws: list[float] | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        draw = iter(draws or []).__next__
        self.traces = Traces(SimpleSpanProcessor(self.exporter), version="1", ratio=ratio, draw=draw)

    @property
    def spans(self) -> dict[str, Any]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def collected() -> Collected:
    return Collected()


def plain_call(**given: str) -> Call:
    notes = Notes()
    return Call("id", "Embedder/Embed", Terms(None, "team", notes=notes), None, given, 5.0, notes)


async def embed(running: Any, *metadata: tuple[str, str]) -> None:
    await running.embedder.Embed(REQUEST, metadata=metadata)
    await running.observer.ended()
    await asyncio.sleep(0)


async def test_a_sampled_parent_makes_a_span_that_says_whose_call_it_was(serve, collected) -> None:
    running = await serve(watchers=[collected.traces])
    await embed(running, SAMPLED, ("tracestate", "a=1"), ("x-request-id", "r1"), ("x-embedmux-tenant", "team"))
    (span,) = collected.spans.values()
    assert (span.name, span.kind) == ("embedmux.v1.Embedder/Embed", SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert (f"{span.parent.span_id:016x}", span.parent.is_remote) == (PARENT, True)
    assert span.context.trace_state.to_header() == "a=1"
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "embedmux.v1.Embedder",
        "rpc.method": "Embed",
        "rpc.grpc.status_code": 0,
        "embedmux.request_id": "r1",
        "embedmux.tenant": "team",
        "embedmux.texts": 2,
        "embedmux.tokens": 0,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert "confidential" not in span.to_json()


async def test_what_a_call_waited_for_lies_below_its_span(serve, encoder, collected) -> None:
    async def answer(job: Any) -> Any:
        now = asyncio.get_running_loop().time()
        job.terms.notes.span("tokenize", now, now + 0.25)
        job.terms.notes.answered(now + 0.25, now + 1.0, now + 3.0)
        return await encoder.answer(job)

    encoder.respond = answer
    running = await serve(watchers=[collected.traces])
    await embed(running, SAMPLED)
    spans = collected.spans
    root = spans.pop("embedmux.v1.Embedder/Embed")
    assert {name: round((span.end_time - span.start_time) / 1e9, 3) for name, span in spans.items()} == {
        "tokenize": 0.25,
        "queue": 0.75,
        "compute": 2.0,
    }
    assert {span.parent.span_id for span in spans.values()} == {root.context.span_id}
    assert spans["tokenize"].start_time >= root.start_time


async def test_the_parent_decides_and_the_ratio_where_there_is_none(serve) -> None:
    collected = Collected(0.01, [0.5, 0.005, 0.009])
    running = await serve(watchers=[collected.traces])
    for _ in range(3):
        await embed(running, UNSAMPLED)
    await embed(running)  # 0.5
    assert collected.spans == {}
    await embed(running)  # 0.005
    await embed(running, ("traceparent", f"00-{'0' * 32}-{PARENT}-01"))  # no parent: it is not valid
    roots = collected.exporter.get_finished_spans()
    assert [span.parent for span in roots] == [None, None]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(EngineFailure("broken"), 13, StatusCode.ERROR), (InvalidRequest("bad"), 3, StatusCode.UNSET)],
)
async def test_a_failed_call_says_its_status(serve, encoder, collected, error, code, status) -> None:
    async def fail(job: Any) -> Any:
        raise error

    encoder.respond = fail
    running = await serve(watchers=[collected.traces])
    with pytest.raises(grpc.aio.AioRpcError):
        await embed(running, SAMPLED)
    await running.observer.ended()
    (span,) = collected.spans.values()
    assert (span.attributes["rpc.grpc.status_code"], span.status.status_code) == (code, status)


async def test_a_stream_is_one_span_and_keeps_only_its_first_stretches(serve, encoder, collected) -> None:
    async def answer(job: Any) -> Any:
        job.terms.notes.span("queue", 1.0, 2.0)
        return await encoder.answer(job)

    encoder.respond = answer
    running = await serve(watchers=[collected.traces])
    stream = running.embedder.EmbedStream(iter([REQUEST] * 100), metadata=[SAMPLED])
    assert len([reply async for reply in stream]) == 100
    await running.observer.ended()
    spans = collected.exporter.get_finished_spans()
    assert len(spans) == 65
    assert spans[-1].attributes["embedmux.texts"] == 200


@pytest.mark.parametrize("given", [{}, {"traceparent": UNSAMPLED[1]}], ids=["no parent", "unsampled parent"])
def test_a_call_that_is_not_sampled_costs_nearly_nothing(given: dict[str, str]) -> None:
    traces = Traces(SimpleSpanProcessor(InMemorySpanExporter()), version="1", ratio=1e-9)
    call = plain_call(**given)
    number = 2000
    seconds = timeit.repeat(lambda: traces.ended(call, grpc.StatusCode.OK, 6.0), number=number, repeat=20)
    assert min(seconds) / number * 1e6 < MOST_US


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.received.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_before_the_server_ends() -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    traces = exporting(f"127.0.0.1:{port}", version="1.5", ratio=0.0)
    traces.ended(plain_call(traceparent=SAMPLED[1]), grpc.StatusCode.OK, 6.0)
    traces.close()
    server.stop(None)
    (request,) = collector.received
    (resource,) = request.resource_spans
    said = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert said == {"service.name": "embedmux", "service.version": "1.5"}
    (span,) = resource.scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.end_time_unix_nano - span.start_time_unix_nano) == (
        TRACE,
        PARENT,
        10**9,
    )


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    monkeypatch.delitem(sys.modules, traces.__name__)
    monkeypatch.delattr(sys.modules["embedmux.server.rpc"], "traces")
    front = Front.__new__(Front)
    front.config = ServeConfig(traces="localhost:4317")
    with pytest.raises(ImportError) as caught:
        front._watchers()
    assert missing_package(caught.value).endswith("pip install 'embedmux[traces]'")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"traces": "collector"}, "traces is 'collector'; it takes HOST:PORT"),
        ({"trace_ratio": 1.5}, "trace_ratio is 1.5; it must be 0 to 1"),
        ({"orca": "sometimes"}, "orca is 'sometimes'; it must be one of never, asked, always"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ServeConfig(**setting)
