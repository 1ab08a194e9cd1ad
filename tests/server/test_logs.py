"""The server's log: its two forms, the line of a call, and that no text ever stands in it."""

import asyncio
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format

from embedmux.proto import embed_pb2, embed_pb2_grpc, rerank_pb2, rerank_pb2_grpc, types_pb2
from embedmux.server import logs
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.config import EngineConfig, Limits, ModelConfig, ServeConfig
from embedmux.server.desk import conduct, open_models
from embedmux.server.errors import InvalidConfig
from embedmux.server.facts import ServerInfo, ServerLimits, ServerState
from embedmux.server.models import default_adapters
from embedmux.server.records import EngineJob, Notes, Sequence, Terms
from embedmux.server.rpc.access import AccessLog
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import TransportOptions, build_server

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SECRETS = ("zanzibar", "quicksilver", "périphérique")
SECRET = " ".join(SECRETS)
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


class Facts:
    """A server that lists no models."""

    def describe(self) -> ServerInfo:
        return ServerInfo("1", ServerState.SERVING, (), ServerLimits(1, 1, 1, 1, 1))


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    config = EngineConfig(models=(ModelConfig("minilm", default_adapters("minilm")),), threads=1)
    engine = LocalEngine(config)
    yield engine
    engine.close()


@pytest.fixture
async def stubs(engine: LocalEngine) -> AsyncIterator[tuple[Any, Any]]:
    """Embedder and Reranker of a whole server in this process, which logs every call."""
    served = open_models(ServeConfig(engine=engine.runtime.config), engine)
    models = conduct(served, Limits(max_text_bytes=4000))
    lifecycle = Lifecycle()
    server = build_server(
        [Embedder(models, lifecycle), Reranker(models, Facts())],
        lifecycle,
        options=TransportOptions(addresses=("127.0.0.1:0",)),
        watchers=[AccessLog(logs_all=True)],
    )
    await server.start()
    lifecycle.set(ServerState.SERVING)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports[0]}") as channel:
        yield embed_pb2_grpc.EmbedderStub(channel), rerank_pb2_grpc.RerankerStub(channel)
    await server.stop(0)
    for model in served:
        model.tokenizer.close()


def asked(text: str = SECRET, **instruction: Any) -> embed_pb2.EmbedRequest:
    """One text with a neighbour."""
    texts = [embed_pb2.Text(text=text, instruction=types_pb2.Instruction(**instruction)), embed_pb2.Text(text=SECRET)]
    return embed_pb2.EmbedRequest(texts=texts)


def poison(monkeypatch: pytest.MonkeyPatch, engine: LocalEngine) -> None:
    """Batches fail that hold a long text, as if the device could not compute it."""
    model = engine.runtime.models[0]
    compute = model.compute

    def compute_or_fail(sequences: list[Sequence]) -> Any:
        if any(sequence.num_tokens > 20 for sequence in sequences):
            raise RuntimeError("the device is in trouble")
        return compute(sequences)

    monkeypatch.setattr(model, "compute", compute_or_fail)


async def said(call: Any) -> str:
    """All that a client is told of a call's failures: its status, or the errors of its texts."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()} {error.trailing_metadata()}"
    return " ".join(text_format.MessageToString(error) for error in getattr(reply, "errors", ()))


def repeats(said: str) -> list[str]:
    """Secrets, or halves of one, that stand in what was said."""
    halves = [half for secret in SECRETS for half in (secret[: len(secret) // 2 + 1], secret[len(secret) // 2 :])]
    return [half for half in halves if half in said.lower()]


async def test_no_failure_repeats_a_text(stubs, engine, caplog, monkeypatch) -> None:
    embedder, reranker = stubs
    poison(monkeypatch, engine)
    long = SECRET * 60
    bad_utf8 = asked().SerializeToString().replace("é".encode(), b"\xc3x")
    raw = embedder.Embed._channel if hasattr(embedder.Embed, "_channel") else None
    assert raw is not None
    rerank = rerank_pb2.RerankRequest(query=SECRET, documents=[SECRET])
    with caplog.at_level(logging.DEBUG):
        answers = {
            "too many bytes": await said(embedder.Embed(asked(long))),
            "too many tokens": await said(embedder.Embed(asked("a " * 1000 + SECRET))),
            "bad task": await said(embedder.Embed(asked(task="nothing"))),
            "bad adapter": await said(embedder.Embed(asked(adapter="nothing"))),
            "no such prompt": await said(embedder.Embed(asked(prompt_name="nothing"))),
            "no template": await said(embedder.Embed(asked(instruction=SECRET))),
            "two prompts": await said(embedder.Embed(asked(instruction=SECRET, prompt=SECRET))),
            "long prompt": await said(embedder.Embed(asked(prompt=long))),
            "no reranker": await said(reranker.Rerank(rerank)),
            "bad dimensions": await said(embedder.Embed(embed_pb2.EmbedRequest(texts=asked().texts, dimensions=9999))),
            "poisoned": await said(embedder.Embed(asked(SECRET * 4))),
            "tokenize": await said(embedder.Tokenize(embed_pb2.TokenizeRequest(texts=[embed_pb2.Text(text=long)]))),
        }
    assert bad_utf8 is not None
    assert all(answers.values()), answers
    assert "the device is in trouble" in answers["poisoned"]
    assert "halving it" in caplog.text
    assert {place: found for place, text in answers.items() if (found := repeats(text))} == {}
    lines = "\n".join(map(logs.JsonLines("front").format, caplog.records))
    assert repeats(lines) == [] == repeats(caplog.text)
    assert sum("access" in each.name for each in caplog.records) == len(answers)
