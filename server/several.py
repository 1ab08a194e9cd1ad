"""Several models in one server: a request names one, or is answered by the first that can."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound
from embedmux.server.requests import EmbedJob, EmbedResult, RerankJob, RerankResult, TokenizedText


class Embeds(Protocol):
    """What an embedding model answers; see Encoder."""

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """One row per text."""
        ...

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        """What the model would read."""
        ...


class Reranks(Protocol):
    """What a reranking model answers; see Reranker."""

    async def rerank(self, job: RerankJob) -> RerankResult:
        """One score per document."""
        ...


Kind = TypeVar("Kind", Embeds, Reranks)


class Models:
    """The models of this server by name, in the order in which they were given.

    One with token vectors stands on both sides. Put it behind the rerankers proper: the first of a side answers what
    names no model.
    """

    def __init__(self, encoders: Mapping[str, Embeds], rerankers: Mapping[str, Reranks]) -> None:
        self._encoders = dict(encoders)
        self._rerankers = dict(rerankers)

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """See Encoder.embed."""
        return await self._encoder(job).embed(_unnamed(job))

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        """See Encoder.tokenize."""
        return await self._encoder(job).tokenize(_unnamed(job))

    async def rerank(self, job: RerankJob) -> RerankResult:
        """See Reranker.rerank."""
        name = job.model
        if name in self._encoders and name not in self._rerankers:
            raise InvalidRequest(
                f"model {name!r} is an embedder and scores no pairs; embed query and documents and compare them"
                + _or_name("reranker", self._rerankers)
            )
        found = self._find(name, self._rerankers, "reranker")
        return await found.rerank(replace(job, model=None) if name else job)

    def _encoder(self, job: EmbedJob) -> Embeds:
        name = job.model
        if name in self._rerankers and name not in self._encoders:
            raise InvalidRequest(
                f"model {name!r} is a reranker and makes no vectors; send query and documents to Rerank"
                + _or_name("embedder", self._encoders)
            )
        return self._find(name, self._encoders, "embedder")

    def _find(self, name: str | None, models: Mapping[str, Kind], kind: str) -> Kind:
        found = next(iter(models.values()), None) if name is None else models.get(name)
        if found is not None:
            return found
        served = ", ".join({**self._encoders, **self._rerankers}) or "none"
        if name is None:
            raise NotFound(f"this server has no {kind}; its models: {served}")
        raise NotFound(f"model {name!r} is not served here; this server has: {served}")


def _unnamed(job: EmbedJob) -> EmbedJob:
    """The job for a model that has been found."""
    return replace(job, model=None) if job.model else job


def _or_name(kind: str, models: Mapping[str, object]) -> str:
    return f", or name a model that is one ({kind}: {', '.join(models)})" if models else ""
