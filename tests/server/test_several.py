"""Several models: a request finds the one it names or the first that can, or is told what would have worked."""

from typing import Any

import pytest

from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound
from embedmux.server.requests import EmbedJob, Instruction, RerankJob
from embedmux.server.several import Models


class Fake:
    """Says who answered; jobs arrive without a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def embed(self, job: EmbedJob) -> Any:
        return self.name, "embed", job.model

    async def tokenize(self, job: EmbedJob) -> Any:
        return self.name, "tokenize", job.model

    async def rerank(self, job: RerankJob) -> Any:
        return self.name, "rerank", job.model


def embed_job(model: str | None) -> EmbedJob:
    return EmbedJob(("x",), (Instruction(),), model=model)


def rerank_job(model: str | None) -> RerankJob:
    return RerankJob("x", ("y",), model=model)


ALL = Models(
    {name: Fake(name) for name in ("small", "m3")}, {name: Fake(name) for name in ("judge", "second", "m3")}
)  # fmt: skip


@pytest.mark.parametrize(("named", "answered"), [(None, "small"), ("small", "small"), ("m3", "m3")])
async def test_embedders_answer_by_name_or_the_first(named: str | None, answered: str) -> None:
    assert await ALL.embed(embed_job(named)) == (answered, "embed", None)
    assert await ALL.tokenize(embed_job(named)) == (answered, "tokenize", None)


@pytest.mark.parametrize(("named", "answered"), [(None, "judge"), ("second", "second"), ("m3", "m3")])
async def test_rerankers_answer_by_name_or_the_first(named: str | None, answered: str) -> None:
    assert await ALL.rerank(rerank_job(named)) == (answered, "rerank", None)


@pytest.mark.parametrize(
    ("models", "named", "error", "words"),
    [
        (ALL, "lost", NotFound, "'lost' is not served here; this server has: small, m3, judge, second"),
        (ALL, "judge", InvalidRequest, r"reranker and makes no vectors; send .* to Rerank, or name .*: small, m3\)"),
        (Models({}, {"judge": Fake("judge")}), None, NotFound, "this server has no embedder; its models: judge"),
        (Models({}, {"judge": Fake("judge")}), "judge", InvalidRequest, "send query and documents to Rerank$"),
    ],
)  # fmt: skip
async def test_what_cannot_embed_says_so(
    models: Models, named: str | None, error: type[EmbedmuxError], words: str
) -> None:
    for call in (models.embed, models.tokenize):
        with pytest.raises(error, match=words):
            await call(embed_job(named))


@pytest.mark.parametrize(
    ("models", "named", "error", "words"),
    [
        (ALL, "lost", NotFound, "'lost' is not served here; this server has: small, m3, judge, second"),
        (ALL, "small", InvalidRequest, r"is an embedder and scores no pairs; .* \(reranker: judge, second, m3\)"),
        (Models({"small": Fake("small")}, {}), None, NotFound, "this server has no reranker; its models: small"),
        (Models({"small": Fake("small")}, {}), "small", InvalidRequest, "embed query and documents and compare them$"),
    ],
)
async def test_what_cannot_rerank_says_so(
    models: Models, named: str | None, error: type[EmbedmuxError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await models.rerank(rerank_job(named))
