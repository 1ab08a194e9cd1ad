"""Reranking against the fake server, blocking and asyncio, and the replies that are refused."""

from collections.abc import Iterator

import pytest

from embedmux.client.aio import AsyncClient
from embedmux.client.blocking import Client
from embedmux.client.errors import UnexpectedReply
from embedmux.client.rerank import RerankOptions, ranking, rerank_request
from embedmux.proto import rerank_pb2, types_pb2
from embedmux.server.errors import InvalidRequest, NotFound, Unavailable

DOCUMENTS = ["red cats", "dogs", "red red dogs", "red dogs"]


@pytest.fixture
def client(fake) -> Iterator[Client]:
    with Client(fake.address, timeout=10, max_attempts=1) as client:
        yield client


def test_documents_come_back_best_first_with_logit_and_score(client) -> None:
    found = client.rerank("red dogs", DOCUMENTS)
    assert [document.index for document in found] == [1, 2, 3, 0]
    assert [document.document for document in found] == ["dogs", "red red dogs", "red dogs", "red cats"]
    assert found[0].logit == 2 and found[0].score == pytest.approx(0.880797, abs=1e-6)
    assert found[3].logit == 0 and found[3].score == 0.5
    assert (found.model, found.activation, found.errors) == ("judge", "sigmoid", {})
    assert len(found) == 4 and found[0].rendered == ""


def test_what_is_asked_for_is_sent(client, fake) -> None:
    options: RerankOptions = {"top_n": 2, "truncate": "start", "instruction": "be strict", "echo": True, "model": "m"}
    found = client.rerank("red", ["red " * 9, "blue", "red"], **options)
    assert [document.index for document in found] == [0, 2]
    assert (found[0].num_tokens, found[0].num_tokens_original, found[0].is_truncated) == (8, 9, True)
    assert not found[1].is_truncated and found[1].rendered == "be strict|red|red"
    assert found.model == "m"
    client.rerank("red", ["a"])
    first, second = fake.rerank_requests
    assert (first.top_n, first.truncate, first.instruction) == (2, types_pb2.TRUNCATE_START, "be strict")
    assert not second.HasField("instruction") and second.top_n == 0 and second.model == ""


def test_an_empty_instruction_is_sent_as_one(client, fake) -> None:
    client.rerank("red", ["a"], instruction="")
    assert fake.rerank_requests[0].HasField("instruction")


def test_a_failed_document_is_raised_or_returned(client) -> None:
    documents = ["red", "fail NOT_FOUND", "blue"]
    with pytest.raises(NotFound, match=r"^document 1: failed: fail NOT_FOUND$"):
        client.rerank("red", documents)
    found = client.rerank("red", documents, errors="return", top_n=2)
    assert [document.index for document in found] == [0, 2] and list(found.errors) == [1]
    assert isinstance(found.errors[1], NotFound)
    with pytest.raises(InvalidRequest, match=r"\(and 1 more of 2 documents failed\)"):
        client.rerank("red", ["fail INVALID_ARGUMENT", "fail INTERNAL"])


def test_a_query_that_is_refused_fails_the_call(client) -> None:
    with pytest.raises(Unavailable, match="refused: refuse UNAVAILABLE"):
        client.rerank("refuse UNAVAILABLE", ["a"])


def test_an_overloaded_server_is_asked_again(fake) -> None:
    with Client(fake.address, timeout=10) as client:
        assert len(client.rerank("overload 2", ["a", "b"])) == 2
    assert len(fake.rerank_requests) == 3


def test_no_documents_are_an_empty_ranking_and_no_call(client, fake) -> None:
    assert len(client.rerank("red", [], model="judge")) == 0
    assert fake.rerank_requests == []


async def test_the_same_on_asyncio(fake) -> None:
    async with AsyncClient(fake.address, timeout=10) as client:
        found = await client.rerank("red dogs", DOCUMENTS, top_n=1)
        assert [document.document for document in found] == ["dogs"]
        with pytest.raises(NotFound, match="document 0"):
            await client.rerank("red", ["fail NOT_FOUND"])
        assert len(await client.rerank("red", [])) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("q", "one document"), {}, "documents is a str, it must be a list"),
        (("q", ["a"]), {"top_n": 0}, "top_n is 0, it must be at least 1"),
        (("q", ["a"]), {"truncate": "middle"}, "truncate is 'middle', it must be one of none, end, start"),
        (("q", ["a", b"b"]), {}, "query and documents must be str, not bytes"),
        (("q\ud800", ["a"]), {}, r"query holds '\\ud800' at character 1"),
        (("q", ["a", "b\udc00"]), {}, r"document 1 holds '\\udc00' at character 1"),
    ],
)
def test_what_no_server_could_take_is_refused_before_it_is_sent(arguments, options, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        rerank_request(*arguments, options)


def test_a_misspelt_option_is_a_type_error(client) -> None:
    with pytest.raises(TypeError, match="unexpected option 'topn'"):
        client.rerank("red", ["a"], topn=3)


@pytest.mark.parametrize(
    ("indices", "failed", "top_n"),
    [
        ([0], [], 0),
        ([0, 1, 2], [], 0),
        ([0, 0], [], 0),
        ([0, 2], [], 0),
        ([0, 1], [1], 0),
        ([0, 1], [], 1),
        ([], [], 0),
    ],
)
def test_a_reply_that_does_not_fit_its_request_is_refused(indices, failed, top_n) -> None:
    request = rerank_request("q", ["a", "b"], {"top_n": top_n or None})
    reply = rerank_pb2.RerankResponse(
        results=[rerank_pb2.RankedDocument(index=index) for index in indices],
        errors=[types_pb2.TextError(index=index, code=5) for index in failed],
    )
    with pytest.raises(UnexpectedReply, match="the reply to 2 documents"):
        ranking(reply, request, "return")
