"""Rerank over the wire: order, top_n, errors of single documents, and which model answers."""

import grpc
import pytest

from embedmux.proto import rerank_pb2, types_pb2
from embedmux.server.errors import InvalidRequest
from embedmux.server.records import Truncate
from embedmux.server.requests import RerankResult
from embedmux.server.rpc.convert_rerank import Scorer, rerank_reply


async def rerank(running, documents=("ccc", "a", "bbbb", "ddd"), **fields) -> rerank_pb2.RerankResponse:
    return await running.reranker.Rerank(rerank_pb2.RerankRequest(query="q", documents=documents, **fields))


async def test_documents_come_back_by_score_and_equal_ones_by_index(running):
    reply = await rerank(running, request_id="r-1")
    assert [(ranked.index, ranked.logit, ranked.score) for ranked in reply.results] == [
        (2, 4.0, 0.4), (0, 3.0, 0.3), (3, 3.0, 0.3), (1, 1.0, 0.1)
    ]  # fmt: skip
    assert (reply.results[0].num_tokens, reply.results[0].num_tokens_original) == (4, 5)
    assert reply.request_id == "r-1" and reply.results[0].rendered == ""


@pytest.mark.parametrize(("top_n", "indices"), [(0, [2, 0, 3, 1]), (1, [2]), (2, [2, 0]), (9, [2, 0, 3, 1])])
async def test_top_n_keeps_the_best(running, reranker, top_n, indices):
    assert [ranked.index for ranked in (await rerank(running, top_n=top_n)).results] == indices
    assert len(reranker.jobs[0].documents) == 4


async def test_a_document_that_fails_is_named_and_costs_the_others_nothing(running, reranker):
    reranker.errors = {2: InvalidRequest("the document is empty"), 1: InvalidRequest("too long")}
    reply = await rerank(running, top_n=3)
    assert [ranked.index for ranked in reply.results] == [0, 3]
    assert [(error.index, error.code, error.message) for error in reply.errors] == [
        (1, 3, "too long"), (2, 3, "the document is empty")
    ]  # fmt: skip


async def test_the_request_arrives_whole(running, reranker):
    reply = await rerank(running, instruction="", truncate=types_pb2.TRUNCATE_START, echo=True, model="large")
    (job,) = reranker.jobs
    assert (job.query, job.documents, job.instruction) == ("q", ("ccc", "a", "bbbb", "ddd"), "")
    assert (job.truncate, job.echoes, job.model) == (Truncate.START, True, "large")
    assert [ranked.rendered for ranked in reply.results] == ["q|bbbb", "q|ccc", "q|ddd", "q|a"]
    await rerank(running)
    assert reranker.jobs[1].instruction is None and reranker.jobs[1].terms.deadline is None


async def test_a_reply_names_the_model_that_scored_and_its_activation(running, reranker):
    first, named = await rerank(running), await rerank(running, model="large")
    assert (first.model, first.activation) == ("small", "sigmoid")
    assert (named.model, named.activation) == ("large", "identity")
    late = await rerank(running, model="colbert")
    assert (late.model, late.activation) == ("colbert", "identity")
    assert [job.model for job in reranker.jobs] == ["small", "large", "colbert"]


async def test_models_that_are_listed_only_after_the_answer_are_named_too(running, reranker):
    running.facts.is_ready = False
    answer = reranker.rerank

    async def ready_meanwhile(job):
        running.facts.is_ready = True
        return await answer(job)

    reranker.rerank = ready_meanwhile
    assert (await rerank(running)).model == "small"
    assert reranker.jobs[0].model is None


async def test_an_unknown_truncation_is_refused(running):
    with pytest.raises(grpc.aio.AioRpcError, match="truncate is 7; this server knows TRUNCATE_UNSPECIFIED") as caught:
        await rerank(running, truncate=7)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await running.observer.ended() == ("Reranker/Rerank", "INVALID_ARGUMENT")


def test_scores_that_differ_only_in_double_precision_keep_their_order():
    scores = [1 - 2e-9, 1 - 1e-9, 1 - 3e-9]
    reply = rerank_reply(
        RerankResult([20.0, 21.0, 19.0], scores, [1] * 3, [1] * 3, {}),
        top_n=0,
        scorer=Scorer("m", "sigmoid"),
        request_id="",
    )
    assert [(ranked.index, ranked.score) for ranked in reply.results] == [
        (1, scores[1]),
        (0, scores[0]),
        (2, scores[2]),
    ]
