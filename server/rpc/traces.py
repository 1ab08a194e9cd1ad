"""OpenTelemetry traces: a server span for each sampled call, with what it waited for as spans below. Optional.

Imported only where traces are asked for. All spans of a call are made when it has ended, from what was noted on its
way, so a call that is not sampled pays for the look at its ``traceparent`` and no more. Texts are in no span.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from embedmux.proto import embed_pb2
from embedmux.server.rpc.calls import TRACEPARENT, Call

PACKAGE = embed_pb2.DESCRIPTOR.package
# W3C Trace Context; ids of zeros and version ff are invalid.
PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
SAMPLED = 1
EXPORT_TIMEOUT_S, CLOSE_TIMEOUT_S = 5, 2.0
# What OpenTelemetry's conventions call an error of the server; all else is the client's or nobody's.
ERRORS = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
)


_log = logging.getLogger(__name__)


class Traces:
    """A Watcher. A call is sampled if its ``traceparent`` says so; one without a parent with probability ``ratio``.

    The span ends with the call's last message. Of a stream with many requests, the first stretches of time are kept.
    """

    def __init__(
        self, processor: SpanProcessor, *, version: str, ratio: float, draw: Callable[[], float] = random.random
    ) -> None:
        resource = Resource({"service.name": "embedmux", "service.version": version})
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("embedmux", version)
        self._propagator = TraceContextTextMapPropagator()
        self._ratio = ratio
        self._draw = draw

    def ended(self, call: Call, status: grpc.StatusCode, now: float) -> None:
        """Makes the spans of a sampled call."""
        parent = PARENT.fullmatch(call.given.get(TRACEPARENT, ""))
        if parent is not None:
            if int(parent[1], 16) & SAMPLED:
                self._record(call, status, now, self._propagator.extract(call.given, Context()))
        elif self._ratio and self._draw() < self._ratio:
            self._record(call, status, now, Context())

    def close(self) -> None:
        """Sends what is left; gives up after ``CLOSE_TIMEOUT_S``."""
        # OpenTelemetry's own timeout holds for each batch, and a collector that is gone would hold the server up.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)
        if closing.is_alive():
            _log.warning("the last traces were not sent within %.1f s", CLOSE_TIMEOUT_S)

    def _record(self, call: Call, status: grpc.StatusCode, now: float, parent: Context) -> None:
        # Spans are in the time of day, calls are timed by a clock that never jumps.
        wall = time.time() - time.monotonic()

        def at(moment: float) -> int:
            return round((wall + moment) * 1e9)

        service, _, method = call.method.partition("/")
        notes = call.notes
        span = self._tracer.start_span(
            f"{PACKAGE}.{call.method}",
            parent,
            kind=SpanKind.SERVER,
            start_time=at(call.began),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": f"{PACKAGE}.{service}",
                "rpc.method": method,
                "rpc.grpc.status_code": status.value[0],
                "embedmux.request_id": call.id,
                "embedmux.tenant": call.tenant,
                "embedmux.texts": notes.num_texts,
                "embedmux.tokens": notes.num_tokens,
            },
        )
        if status in ERRORS:
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span, Context())
        for name, begin, end in notes.spans:
            self._tracer.start_span(name, below, start_time=at(begin)).end(at(end))
        span.end(at(now))


def exporting(address: str, *, version: str, ratio: float) -> Traces:
    """Traces sent by OTLP over gRPC, without TLS, to a collector at HOST:PORT; in batches, by a thread of its own."""
    exporter = OTLPSpanExporter(endpoint=f"http://{address}", insecure=True, timeout=EXPORT_TIMEOUT_S)
    return Traces(BatchSpanProcessor(exporter), version=version, ratio=ratio)
