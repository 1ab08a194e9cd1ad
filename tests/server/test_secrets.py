"""No text of a client, nor a part of one, stands in a log line or an error, whatever fails."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import create_autospec

import grpc
import pytest
from google.protobuf import text_format

from embedmux.proto import embed_pb2, embed_pb2_grpc, rerank_pb2, rerank_pb2_grpc, types_pb2
from embedmux.server import logs
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.config import EngineConfig, Limits, ModelConfig, ServeConfig
from embedmux.server.desk import conduct, open_models
from embedmux.server.facts import ServerInfo, ServerLimits, ServerState
from embedmux.server.models import default_adapters
from embedmux.server.records import Sequence
from embedmux.server.requests import EmbedJob, Instruction, RerankJob
from embedmux.server.rpc.access import AccessLog
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import TransportOptions, build_server
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

SECRETS = ("zanzibar", "quicksilver", "périphérique")
SECRET = " ".join(SECRETS)


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
async def stubs(engine: LocalEngine) -> AsyncIterator[tuple[Any, Any, grpc.aio.Channel]]:
    """Embedder and Reranker of a whole server in this process, which logs every call; and the channel to it."""
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
        yield embed_pb2_grpc.EmbedderStub(channel), rerank_pb2_grpc.RerankerStub(channel), channel
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
    embedder, reranker, channel = stubs
    poison(monkeypatch, engine)
    long = SECRET * 60
    bad_utf8 = asked().SerializeToString().replace("é".encode(), b"\xc3x")
    raw_embed = channel.unary_unary("/embedmux.v1.Embedder/Embed")
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
            "no UTF-8": await said(raw_embed(bad_utf8)),
            "tokenize": await said(embedder.Tokenize(embed_pb2.TokenizeRequest(texts=[embed_pb2.Text(text=long)]))),
        }
        broken = create_autospec(Tokenizer.encode, side_effect=RuntimeError("the tokenizer is in trouble"))
        monkeypatch.setattr(Tokenizer, "encode", broken)
        answers["unexpected"] = await said(embedder.Embed(asked()))
    assert all(answers.values()), answers
    assert "the device is in trouble" in answers["poisoned"]
    assert "halving it" in caplog.text and "the tokenizer is in trouble" in caplog.text
    assert {place: found for place, text in answers.items() if (found := repeats(text))} == {}
    lines = "\n".join(map(logs.JsonLines("front").format, caplog.records))
    assert repeats(lines) == [] == repeats(caplog.text)
    calls = [each.fields for each in caplog.records if "access" in each.name]
    assert len(calls) == len(answers)
    assert calls[list(answers).index("poisoned")]["tokens"] > 20


def test_a_record_that_is_shown_hides_what_a_client_wrote() -> None:
    words = Instruction(prompt=SECRET, instruction=SECRET)
    shown = (EmbedJob((SECRET,), (words,)), RerankJob(SECRET, (SECRET,), SECRET), Frame(SECRET, SECRET, SECRET))
    assert repeats(" ".join(map(repr, shown))) == []
