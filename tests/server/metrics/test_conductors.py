"""What the conductors tell of each request: its texts once, or why it was refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from embedmux.server.bridge.port import Answer
from embedmux.server.catalog import Catalog
from embedmux.server.config import Limits
from embedmux.server.contract import Contract, ScoreContract, ScoreKind
from embedmux.server.encode import Encoder
from embedmux.server.errors import InvalidRequest, Overloaded
from embedmux.server.facts import ModelInfo
from embedmux.server.metrics.counters import FrontCounters
from embedmux.server.records import Output, OutputSpec, Pooling, Priority, Terms, Tokens
from embedmux.server.requests import EmbedJob, Instruction, RerankJob
from embedmux.server.rerank import Reranker
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
EMBEDDER = Contract("test", "bert", 40, Pooling.CLS, (4,))
JUDGE = Contract(
    "test", "bert", 40, Pooling.CLS, (4,), outputs=(Output.SCORE,), score=ScoreContract(ScoreKind.CLASSIFIER)
)
TERMS = Terms(tenant="ann", priority=Priority.BULK)


class FakeEngine:
    """Zeros for all; refuses them where ``is_full``, or, if ``is_early``, before the texts are read."""

    model = ModelInfo("mini", "b" * 64, "bert", 4, 64, "cls", "float32", "cpu", {}, {}, "none")

    def __init__(self, *, is_full: bool = False, is_early: bool = False) -> None:
        self.adapters: dict[str, object] = {}
        self.is_full, self.is_early = is_full, is_early

    def expect(self, num_characters: int, terms: Terms) -> None:
        if self.is_early:
            raise Overloaded("it cannot be done in time", reason="deadline")

    async def embed(self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms) -> Answer:
        failed = {at: Overloaded("the queue is full") for at in range(len(tokens))} if self.is_full else {}
        return struct.pack("<f", 0.0) * (output.row_bytes(1) // 4 * len(tokens)), failed  # type: ignore[return-value]


def encoder(folder: Path, engine: FakeEngine, counters: FrontCounters) -> Encoder:
    catalog = Catalog(engine, EMBEDDER)  # type: ignore[arg-type]
    observer = counters.of_model("mini")
    return Encoder(catalog, Tokenizer(folder, EMBEDDER), engine, Limits(), observer)  # type: ignore[arg-type]


def reranker(folder: Path, engine: FakeEngine, counters: FrontCounters) -> Reranker:
    return Reranker(JUDGE, Tokenizer(folder, JUDGE), engine, Limits(), counters.of_model("mini"))  # type: ignore[arg-type]


EMBED = EmbedJob(("the moon", "the sea", ""), (Instruction(),) * 3, terms=TERMS)
RERANK = RerankJob("the moon", ("the sea", "", "the fox"), terms=TERMS)


async def test_an_embedded_request_is_told_once(tokenizer_folder: Folder) -> None:
    counters = FrontCounters()
    result = await encoder(tokenizer_folder("bert"), FakeEngine(), counters).embed(EMBED)
    found = counters.as_dict()
    assert found["texts"] == [[["mini", "none", "ann", "bulk"], [2, sum(result.num_tokens), 0]]]
    assert found["requests"] == [[["mini", "ann", "bulk"], 1]]
    assert found["errors"] == [[["mini", "InvalidRequest"], 1]]
    assert sum(found["reading"][0][1]["counts"]) == 1


async def test_a_reranked_request_is_told_once(tokenizer_folder: Folder) -> None:
    counters = FrontCounters()
    result = await reranker(tokenizer_folder("bert"), FakeEngine(), counters).rerank(RERANK)
    found = counters.as_dict()
    assert found["texts"] == [[["mini", "none", "ann", "bulk"], [2, sum(result.num_tokens), 0]]]
    assert found["errors"] == [[["mini", "InvalidRequest"], 1]]


@pytest.mark.parametrize(
    ("engine", "reason"), [(FakeEngine(is_full=True), "queue"), (FakeEngine(is_early=True), "deadline")]
)
async def test_a_refused_request_is_told_with_its_reason(
    tokenizer_folder: Folder, engine: FakeEngine, reason: str
) -> None:
    counters, folder = FrontCounters(), tokenizer_folder("bert")
    with pytest.raises(Overloaded):
        await encoder(folder, engine, counters).embed(EMBED)
    with pytest.raises(Overloaded):
        await reranker(folder, engine, counters).rerank(RERANK)
    found = counters.as_dict()
    assert found["refused"] == [[[reason, "mini", "ann", "bulk"], 2]]
    assert not found["texts"] and not found["requests"]


async def test_a_wrong_request_is_neither(tokenizer_folder: Folder) -> None:
    counters = FrontCounters()
    with pytest.raises(InvalidRequest):
        await encoder(tokenizer_folder("bert"), FakeEngine(), counters).embed(EmbedJob((), ()))
    assert not any(counters.as_dict().values())
