"""Proto <-> records of the Reranker, both ways, pure."""

from dataclasses import dataclass

from embedmux.proto import rerank_pb2, types_pb2
from embedmux.server.records import Terms
from embedmux.server.requests import RerankJob, RerankResult
from embedmux.server.rpc import convert


@dataclass(frozen=True, slots=True)
class Scorer:
    """The model that answers a request, and how its logits become scores."""

    model: str
    activation: str


def rerank_job(request: rerank_pb2.RerankRequest, *, terms: Terms) -> RerankJob:
    """The request free of proto; an instruction that was set counts even if it is empty."""
    return RerankJob(
        query=request.query,
        documents=tuple(request.documents),
        instruction=request.instruction if request.HasField("instruction") else None,
        truncate=convert.member(convert.TRUNCATES, request.truncate, types_pb2.Truncate),
        model=request.model or None,
        terms=terms,
        echoes=request.echo,
    )


def rerank_reply(result: RerankResult, *, top_n: int, scorer: Scorer, request_id: str) -> rerank_pb2.RerankResponse:
    """The best ``top_n`` documents (0: all), by score as it travels; equal scores by index."""
    ranked = sorted((-score, index) for index, score in enumerate(result.scores) if index not in result.errors)
    return rerank_pb2.RerankResponse(
        results=[_ranked(result, index) for _, index in ranked[: top_n or None]],
        errors=[convert.text_error(index, error) for index, error in sorted(result.errors.items())],
        model=scorer.model,
        activation=scorer.activation,
        request_id=request_id,
    )


def _ranked(result: RerankResult, index: int) -> rerank_pb2.RankedDocument:
    return rerank_pb2.RankedDocument(
        index=index,
        logit=result.logits[index],
        score=result.scores[index],
        num_tokens=result.num_tokens[index],
        num_tokens_original=result.num_tokens_original[index],
        rendered=result.rendered[index] if result.rendered else "",
    )
