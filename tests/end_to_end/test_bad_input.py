"""What cannot be served gets a precise error, or the documented result, and its neighbours keep their vectors."""

from typing import Any

import grpc
import numpy as np
import pytest
from end_to_end_support import Served, embed_request
from numpy.typing import NDArray

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.client.vectors import decode
from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound

GOOD = ["the river by the castle", "a song of winter"]
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def stubs(server: Served) -> Any:
    """gRPC's own stubs: what they send is not checked by the client."""
    return server.stubs()


@pytest.fixture(scope="module")
def good(server: Served) -> NDArray[Any]:
    """The vectors of the good texts."""
    with server.client() as client:
        return client.embed(GOOD).vectors


def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    """Code and words of the refusal of a whole call."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code(), caught.value.details()


def between(client: Client, bad: Text, good: NDArray[Any], **options: Any) -> EmbedmuxError:
    """The error of a bad text that stands between two good ones, which must be answered as always."""
    found = client.embed([GOOD[0], bad, GOOD[1]], errors="return", **options)
    assert list(found.errors) == [1]
    assert not found.vectors[1].any()
    assert found.spaces[1] is None
    np.testing.assert_array_equal(found.vectors[[0, 2]], good)
    return found.errors[1]


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (Text(""), InvalidRequest, ["empty", "at least one character"]),
        (Text("word " * 2_000_000), InvalidRequest, ["10000000 bytes", "1048576", "max_text_bytes", "split"]),
        (Text("ü" * 600_000), InvalidRequest, ["1200000 bytes", "1048576"]),
        (Text("river " * 255), InvalidRequest, ["257 tokens", "256", "truncate"]),
        (Text("x", task="legal"), NotFound, ["'legal'", "classification, clustering, retrieval, text-matching"]),
        (Text("x", adapter="legal"), NotFound, ["'legal'", "not loaded", "clustering"]),
        (Text("x", prompt_name="title"), NotFound, ["'title'", "known: none"]),
        (Text("x", task="retrieval", prompt_name="title"), NotFound, ["'title'", "document, query"]),
        (Text("x", task="retrieval"), InvalidRequest, ["'retrieval'", "role", "query or document"]),
        (Text("x", adapter="retrieval"), InvalidRequest, ["'retrieval'", "role"]),
        (Text("x", task="retrieval.query", role="document"), InvalidRequest, ["'retrieval.query'", "'document'"]),
        (Text("x", task="clustering", adapter="retrieval", role="query"), InvalidRequest, ["clustering", "retrieval"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_text_has_an_error_of_its_own(
    client: Client, good: NDArray[Any], bad: Text, kind: type[EmbedmuxError], words: list[str]
) -> None:
    error = between(client, bad, good)
    assert type(error) is kind
    assert [word for word in words if word not in str(error)] == []


def test_a_whole_request_of_bad_texts_is_answered_with_their_errors(client: Client) -> None:
    found = client.embed([Text(""), Text("x", task="legal"), Text("river " * 300)], errors="return")
    assert [type(found.errors[i]) for i in range(3)] == [InvalidRequest, NotFound, InvalidRequest]
    assert not found.vectors.any()


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (embed_request(), INVALID, ["no texts"]),
        (embed_request(*["x"] * 2049), INVALID, ["2049 texts", "2048", "max_texts", "EmbedStream"]),
        (embed_request("x", dimensions=385, force_dimensions=True), INVALID, ["385", "384"]),
        (embed_request("x", dimensions=200), INVALID, ["200", "384", "force_dimensions"]),
        (embed_request("x", outputs=[types_pb2.OUTPUT_TOKENS]), INVALID, ["tokens", "dense"]),
        (embed_request("x", outputs=[9]), INVALID, ["output is 9", "OUTPUT_SPARSE"]),
        (embed_request("x", dimensions=2**32 - 1), INVALID, ["4294967295", "384"]),
        (embed_request("x", encoding=99), INVALID, ["encoding is 99", "ENCODING_UBINARY"]),
        (embed_request("x", truncate=7), INVALID, ["truncate is 7", "TRUNCATE_END"]),
        (embed_request("x", role=9), INVALID, ["role is 9", "ROLE_QUERY"]),
        (embed_request("x", model="legal-bert"), MISSING, ["'legal-bert'", "minilm"]),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:30],
)
def test_a_bad_request_is_refused_as_a_whole(
    stubs: Any, request_: embed_pb2.EmbedRequest, code: grpc.StatusCode, words: list[str]
) -> None:
    found, details = refused(stubs.embedder.Embed, request_)
    assert found is code
    assert [word for word in words if word not in details] == []


def test_a_bad_request_on_a_stream_does_not_end_it(stubs: Any, good: NDArray[Any]) -> None:
    requests = [embed_request(*GOOD), embed_request(), embed_request("x", encoding=99), embed_request(*GOOD)]
    replies = list(stubs.embedder.EmbedStream(iter(requests), timeout=60))
    assert [reply.failure.code for reply in replies] == [0, 3, 3, 0]
    for reply in (replies[0], replies[3]):
        np.testing.assert_array_equal(decode(reply, 2).vectors, good)


def test_bytes_that_are_no_utf8_are_refused_by_place(server: Served, stubs: Any) -> None:
    raw = embed_request("good", "bad?").SerializeToString().replace(b"bad?", b"bad\xff")
    channel = grpc.insecure_channel(server.address)
    send = channel.unary_unary("/embedmux.v1.Embedder/Embed", response_deserializer=embed_pb2.EmbedResponse.FromString)
    code, details = refused(send, raw)
    assert code is INVALID
    assert [word for word in ("texts[1].text", "UTF-8", "0xff", "offset 3") if word not in details] == []
    code, details = refused(send, b"\xff\xff\xff not a message")
    assert code is INVALID
    assert "EmbedRequest" in details
    channel.close()
    assert stubs.embedder.Embed(embed_request("still here"), timeout=60).dimensions == 384


def test_no_dimensions_are_the_full_size(stubs: Any, good: NDArray[Any]) -> None:
    reply = stubs.embedder.Embed(embed_request(*GOOD, dimensions=0), timeout=60)
    assert reply.dimensions == 384
    np.testing.assert_array_equal(decode(reply, 2).vectors, good)


def test_a_long_text_is_refused_or_cut_where_asked(client: Client) -> None:
    head, tail = " ".join(["river"] * 254), " ".join(["castle"] * 254)
    long = f"{head} {tail}"
    assert "510 tokens" in str(client.embed(long, errors="return").errors[0])
    kept_start, kept_end = client.embed(long, truncate="end"), client.embed(long, truncate="start")
    for cut, same in ((kept_start, head), (kept_end, tail)):
        assert (cut.num_tokens.tolist(), cut.num_tokens_original.tolist()) == ([256], [510])
        assert cut.truncated.all()
        whole = client.embed(same)
        assert (whole.num_tokens.tolist(), whole.truncated.tolist()) == ([256], [False])
        np.testing.assert_array_equal(cut.vectors, whole.vectors)
    (read,) = client.tokenize(long, truncate="end")
    assert len(read.ids) == 256
    assert (read.tokens[0], read.tokens[-1]) == ("[CLS]", "[SEP]")


def test_codes_without_stored_ranges_are_refused_for_these_texts_only(client: Client) -> None:
    small: dict[str, Any] = {"dimensions": 128, "force_dimensions": True, "encoding": "int8"}
    good_codes = client.embed(GOOD, task="retrieval", role="query", **small)
    bare = Text("x", prompt="")
    texts = [*(Text(text, task="retrieval", role="query") for text in GOOD), bare]
    found = client.embed(texts, errors="return", **small)
    assert list(found.errors) == [2]
    words = str(found.errors[2])
    assert [word for word in ("int8", "bare model", "128 dimensions", "384") if word not in words] == []
    np.testing.assert_array_equal(found.vectors[:2], good_codes.vectors)
    odd: dict[str, Any] = {"dimensions": 200, "force_dimensions": True, "encoding": "uint8"}
    error = client.embed("x", task="clustering", errors="return", **odd).errors[0]
    assert isinstance(error, InvalidRequest)
    assert [word for word in ("uint8", "'clustering'", "200", "128, 384") if word not in str(error)] == []


def test_bad_texts_can_not_be_tokenized_either(stubs: Any) -> None:
    texts = [embed_pb2.Text(text=text) for text in ("", "fine", "river " * 300)]
    reply = stubs.embedder.Tokenize(embed_pb2.TokenizeRequest(texts=texts), timeout=60)
    assert [error.index for error in reply.errors] == [0, 2]
    assert list(reply.texts[1].tokens) == ["[CLS]", "fine", "[SEP]"]
    cut = embed_pb2.TokenizeRequest(texts=texts[2:], truncate=types_pb2.TRUNCATE_START)
    assert stubs.embedder.Tokenize(cut, timeout=60).texts[0].num_tokens_original == 302


def test_a_request_over_the_message_limit_is_refused_by_grpc(server: Served, stubs: Any) -> None:
    with server.client() as client:
        limit = 64 << 20
        texts = ["x" * (1 << 20)] * 65
        assert sum(map(len, texts)) > limit
        code, _ = refused(stubs.embedder.Embed, embed_request(*texts))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(client.embed([GOOD[0]])) == 1
