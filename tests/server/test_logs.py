"""The server's log: its two forms, in every process, and the line of a call."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from embedmux.client.blocking import Client
from embedmux.client.stubs import make_stubs
from embedmux.proto import embed_pb2
from embedmux.server import logs
from embedmux.server.bridge.board import BOARD_BYTES
from embedmux.server.bridge.linked import memory_file
from embedmux.server.config import EngineConfig, ServeConfig
from embedmux.server.errors import InvalidConfig
from embedmux.server.records import Notes, Terms
from embedmux.server.rpc.access import AccessLog
from embedmux.server.rpc.calls import Call

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SECRET = "zanzibar"
WAIT_S = 60


def record(message: str, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("a.b").makeRecord("a.b", logging.WARNING, "f", 1, message, (), None, extra=extra)


def call(**changes: Any) -> Call:
    notes = Notes(num_texts=3, num_tokens=40)
    values = {"id": "r1", "method": "Embedder/Embed", "terms": Terms(None, "team", notes=notes), "context": None}
    return Call(**{**values, "given": {}, "began": 10.0, "notes": notes, **changes})


def test_a_line_is_one_json_object_whatever_the_message_holds() -> None:
    line = logs.JsonLines("engine").format(record("two\nlines é\u2028", fields={"request_id": "r1"}))
    found = json.loads(line)
    assert line.isascii() and "\n" not in line
    assert TIME.fullmatch(found.pop("time"))
    assert found.pop("pid") > 0
    assert found == {
        "level": "WARNING",
        "process": "engine",
        "logger": "a.b",
        "message": "two\nlines é\u2028",
        "request_id": "r1",
    }


def test_an_exception_comes_with_its_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = record("failed")
        found.exc_info = sys.exc_info()
    exception = json.loads(logs.JsonLines("front").format(found))["exception"]
    assert exception.startswith("Traceback") and exception.endswith("ValueError: broken")


def test_every_process_is_told_the_form() -> None:
    config = ServeConfig(engine=EngineConfig(log_format="json"))
    assert ServeConfig.from_json(config.to_json()).engine.log_format == "json"
    assert EngineConfig.from_json(config.engine.to_json()).log_format == "json"
    with pytest.raises(InvalidConfig, match="log_format is 'xml'; it must be one of text, json"):
        EngineConfig(log_format="xml")
    with pytest.raises(InvalidConfig, match="log_calls is 'some'; it must be one of none, failed, all"):
        ServeConfig(log_calls="some")


def test_the_engine_process_obeys() -> None:
    code = """
        from embedmux.server.bridge import child
        def fail(*_): raise RuntimeError("no such device")
        child.Runtime = fail
        child.main()
    """
    ours, theirs = socket.socketpair()
    board = memory_file(BOARD_BYTES)
    files = [str(theirs.fileno()), "0", str(board), str(theirs.fileno())]
    command = [sys.executable, "-c", textwrap.dedent(code), *files, EngineConfig(log_format="json").to_json()]
    with ours, theirs:
        ended = subprocess.run(command, pass_fds=(theirs.fileno(), board), capture_output=True, text=True)
    os.close(board)
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert (ended.returncode, line["process"], line["message"]) == (1, "engine", "the model did not load")
    assert line["exception"].endswith("RuntimeError: no such device")


@pytest.mark.parametrize("status", list(grpc.StatusCode), ids=lambda status: status.name)
def test_calls_that_fail_by_the_servers_fault_have_a_line(caplog, status: grpc.StatusCode) -> None:
    with caplog.at_level(logging.INFO):
        AccessLog(logs_all=False).ended(call(), status, 10.5)
        assert len(caplog.records) == (status.name in ("INTERNAL", "UNKNOWN", "UNAVAILABLE"))
        AccessLog(logs_all=True).ended(call(), status, 10.5)
    assert caplog.records[-1].fields == {
        "method": "Embedder/Embed",
        "request_id": "r1",
        "tenant": "team",
        "status": status.name,
        "milliseconds": 500.0,
        "texts": 3,
        "tokens": 40,
    }
    expected = f"call r1 of Embedder/Embed, tenant 'team', ended {status.name} after 500.0 ms: 3 texts, 40 tokens"
    assert caplog.records[-1].getMessage() == expected


def test_a_tenant_that_is_refused_is_not_repeated(caplog) -> None:
    AccessLog(logs_all=False).ended(call(terms=Terms(None, "t" * 65)), grpc.StatusCode.INTERNAL, 10.5)
    assert caplog.records[-1].fields["tenant"] == ""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}

    def Export(self, request: Any, context: Any) -> Any:
        for scope in [scope for resource in request.resource_spans for scope in resource.scope_spans]:
            self.spans |= {span.name: span for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """An OpenTelemetry collector, and where it listens."""
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"127.0.0.1:{port}"
    server.stop(None)


def test_a_server_of_three_processes_says_all_in_json_and_sends_what_was_measured(tmp_path, collector) -> None:
    found, address = collector
    port_file = tmp_path / "port"
    words = ["--frontends", "2", "--log-format", "json", "--log-calls", "all", "--traces", address, "--threads", "1"]
    words += ["--trace-ratio", "0"]
    command = [sys.executable, "-m", "embedmux.server.cli", "serve", "--address", "127.0.0.1:0"]
    log = (tmp_path / "log").open("w+b")
    with log, subprocess.Popen([*command, "--port-file", str(port_file), *words], stdout=log, stderr=log) as process:
        try:
            while not port_file.exists() or not port_file.read_text().endswith("\n"):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.02)
            request = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text=SECRET)] * 2)
            parent = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
            with Client(f"127.0.0.1:{port_file.read_text().strip()}") as client:
                client.wait_until_serving(WAIT_S)
                assert client.embed([SECRET] * 3).vectors.shape == (3, 384)
            with grpc.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}") as channel:
                make_stubs(channel).embedder.Embed(request, metadata=[parent, ("x-request-id", "mine")])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert SECRET not in (tmp_path / "log").read_text()
    assert all(TIME.fullmatch(line["time"]) and line["process"] in ("front", "engine") for line in lines)
    (mine,) = [line for line in lines if line.get("request_id") == "mine"]
    assert (mine["method"], mine["status"], mine["texts"]) == ("Embedder/Embed", "OK", 2)
    assert mine["tokens"] > 0
    root = found.spans["embedmux.v1.Embedder/Embed"]
    below = [found.spans[name] for name in ("tokenize", "queue", "compute")]
    assert {span.parent_span_id for span in below} == {root.span_id}
    times = [time for span in below for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert [root.start_time_unix_nano, *times, root.end_time_unix_nano] == sorted(
        [root.start_time_unix_nano, *times, root.end_time_unix_nano]
    )
    assert SECRET not in " ".join(map(str, found.spans.values()))
