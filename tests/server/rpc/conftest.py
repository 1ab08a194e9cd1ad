"""A server on a loopback port in front of a fake encoder."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from embedmux.proto import adapters_pb2_grpc, embed_pb2_grpc, rerank_pb2_grpc, server_pb2_grpc
from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import AdapterInfo, ModelInfo, ServedModel, ServerInfo, ServerLimits, ServerState
from embedmux.server.records import Space
from embedmux.server.requests import EmbedJob, EmbedResult, RerankJob, RerankResult, TokenizedText
from embedmux.server.rpc.adapters import Adapters
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.info import Info
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import TransportOptions, build_server


class FakeEncoder:
    """Answers with rows that hold the text's length; ``respond`` may be replaced, jobs are kept."""

    dimensions = 4

    def __init__(self) -> None:
        self.jobs: list[EmbedJob] = []
        self.arrived = asyncio.Condition()
        self.errors: dict[int, EmbedmuxError] = {}
        self.respond: Callable[[EmbedJob], Any] = self.answer

    async def embed(self, job: EmbedJob) -> EmbedResult:
        async with self.arrived:
            self.jobs.append(job)
            self.arrived.notify_all()
        return await self.respond(job)

    async def answer(self, job: EmbedJob) -> EmbedResult:
        size = job.encoding.row_bytes(self.dimensions)
        return EmbedResult(
            vectors=b"".join(bytes([len(text) % 256]) * size for text in job.texts),
            encoding=job.encoding,
            dimensions=self.dimensions,
            num_tokens=[len(text) for text in job.texts],
            num_tokens_original=[len(text) for text in job.texts],
            spaces=[None if at in self.errors else Space("space") for at in range(len(job.texts))],
            errors=self.errors,
        )

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        self.jobs.append(job)
        return [
            self.errors.get(at) or TokenizedText([1, 2], ["a", "b"], original=2, prompt="query: ")
            for at in range(len(job.texts))
        ]

    async def has_jobs(self, number: int) -> None:
        async with asyncio.timeout(10), self.arrived:
            await self.arrived.wait_for(lambda: len(self.jobs) >= number)


class Gate:
    """An encoder's answer that waits until it is let through, and counts how many were cancelled instead."""

    def __init__(self, encoder: FakeEncoder) -> None:
        self.open = asyncio.Event()
        self.num_cancelled = 0
        self._answer = encoder.answer
        encoder.respond = self

    async def __call__(self, job: EmbedJob) -> EmbedResult:
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            for _ in range(50):  # dropping work takes its time, and the stream waits for it
                await asyncio.sleep(0)
            self.num_cancelled += 1
            raise
        return await self._answer(job)


class FakeReranker:
    """Scores a document by its length; jobs are kept, and documents in ``errors`` fail."""

    def __init__(self) -> None:
        self.jobs: list[RerankJob] = []
        self.errors: dict[int, EmbedmuxError] = {}

    async def rerank(self, job: RerankJob) -> RerankResult:
        self.jobs.append(job)
        lengths = [0 if at in self.errors else len(document) for at, document in enumerate(job.documents)]
        return RerankResult(
            logits=[float(length) for length in lengths],
            scores=[length / 10 for length in lengths],
            num_tokens=lengths,
            num_tokens_original=[length + 1 for length in lengths],
            errors=self.errors,
            rendered=[f"{job.query}|{document}" for document in job.documents] if job.echoes else [],
        )


class FakeFacts:
    """A server with two embedders, one with token vectors, and two rerankers; it lists them while ``is_ready``."""

    def __init__(self) -> None:
        self.is_ready = True

    def describe(self) -> ServerInfo:
        named = [
            ("embedder", "plain", "", ("dense",)),
            ("embedder", "colbert", "", ("tokens",)),
            ("reranker", "small", "sigmoid", ("score",)),
            ("reranker", "large", "identity", ("score",)),
        ]
        shared = ("d", "bert", 4, 8, "cls", "float32", "cpu", {}, {}, "avx2")
        infos = [
            ModelInfo(name, *shared, kind=kind, activation=activation, outputs=outputs)
            for kind, name, activation, outputs in named
        ]
        models = tuple(ServedModel(info, (), {}) for info in infos) if self.is_ready else ()
        return ServerInfo("1", ServerState.SERVING, models, ServerLimits(1, 2, 3, 4, 5))


class FakeDesk:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.adapters: dict[str, AdapterInfo] = {}

    async def load(self, path: str, adapter_id: str | None, model: str | None, placement: str | None) -> AdapterInfo:
        name = adapter_id or path
        self.adapters[name] = AdapterInfo(
            handle=0,
            id=name,
            digest="d1",
            task=None,
            prompts={"query": "q: "},
            calibrations={128: "c128", 64: "c64"},
            max_rank=8,
            num_bytes=1000,
            num_targets=12,
            role="document",
            model=model or "first",
            placement=placement or "low-rank",
        )
        return self.adapters[name]

    async def unload(self, adapter_id: str, model: str | None) -> None:
        assert self.adapters.pop(adapter_id).model == (model or "first")

    def list(self, model: str | None) -> list[AdapterInfo]:
        return [adapter for adapter in self.adapters.values() if model in (None, adapter.model)]


class Observer:
    """``await ended()`` is the next call to finish; ``reasons`` are those of refused ones."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.reasons: list[str] = []

    def started(self, method: str) -> None:
        pass

    def finished(self, method: str, status: str, seconds: float) -> None:
        self._queue.put_nowait((method, status))

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)

    async def ended(self) -> tuple[str, str]:
        return await asyncio.wait_for(self._queue.get(), 10)


@pytest.fixture
async def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
async def reranker() -> FakeReranker:
    return FakeReranker()


@pytest.fixture
async def gate(encoder: FakeEncoder) -> Gate:
    return Gate(encoder)


@pytest.fixture
async def serve(encoder: FakeEncoder, reranker: FakeReranker) -> AsyncIterator[Callable[..., Any]]:
    """``await serve(**options)`` -> stubs, channel, lifecycle and server; all are closed after the test."""
    started: list[Any] = []

    async def start(
        facts: Any = None, stream: dict[str, int] | None = None, watchers: Any = (), reports: Any = None, **options: Any
    ) -> SimpleNamespace:
        lifecycle = Lifecycle()
        observer = Observer()
        desk = FakeDesk()
        facts = facts or FakeFacts()
        services = [Embedder(encoder, lifecycle, **(stream or {})), Reranker(reranker, facts), Adapters(desk)]
        services.append(Info(facts))
        options = TransportOptions(**{"addresses": ("127.0.0.1:0",), **options})
        server = build_server(
            services, lifecycle, options=options, observer=observer, watchers=watchers, reports=reports
        )
        await server.start()
        lifecycle.set(ServerState.SERVING)
        address = f"127.0.0.1:{server.ports[0]}" if server.ports[0] else options.addresses[0]
        channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        started.append((channel, server))
        return SimpleNamespace(
            address=address,
            channel=channel,
            desk=desk,
            facts=facts,
            lifecycle=lifecycle,
            observer=observer,
            server=server,
            embedder=embed_pb2_grpc.EmbedderStub(channel),
            reranker=rerank_pb2_grpc.RerankerStub(channel),
            adapters=adapters_pb2_grpc.AdaptersStub(channel),
            info=server_pb2_grpc.ServerStub(channel),
        )

    yield start
    for channel, server in started:
        await channel.close()
        await server.stop(grace_s=0)


@pytest.fixture
async def running(serve: Callable[..., Any]) -> SimpleNamespace:
    """A server with the options a user gets."""
    return await serve()
