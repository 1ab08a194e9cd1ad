"""The blocking client against a fake server: order, windows, retries, errors."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from embedmux.client.blocking import Client
from embedmux.client.errors import UnexpectedReply
from embedmux.client.streaming import RequestFeed
from embedmux.client.texts import Text
from embedmux.server.errors import (
    AdapterRejected,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    SpaceMismatch,
    Unavailable,
)
from embedmux.server.records import Space


@pytest.fixture
def client(fake) -> Iterator[Client]:
    with Client(fake.address, timeout=10, batch_size=4, in_flight=3) as client:
        yield client


def test_importing_the_client_loads_no_torch() -> None:
    code = "import sys, embedmux.client.blocking, embedmux.client.aio; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_request_mixes_tasks_and_only_texts_of_one_space_compare(client, fake) -> None:
    mixed = [Text("find it", task="retrieval", role="query"), Text("found", task="retrieval", role="document"), "spam"]
    embeddings = client.embed(mixed, task="classification")
    assert len(fake.requests) == 1
    assert [space.id for space in embeddings.spaces] == ["space-retrieval", "space-retrieval", "space-classification"]
    assert embeddings[0].similarity(embeddings[1]).shape == (1, 1)
    with pytest.raises(SpaceMismatch, match=r"space-retrieval.*space-classification"):
        embeddings[0].similarity(embeddings[2])


def test_a_long_list_is_split_and_comes_back_in_order(client, fake) -> None:
    texts = [f"text {number}" for number in range(50)]
    whole = client.embed(texts, task="retrieval")
    assert len(fake.requests) == 13
    assert fake.max_under_way <= 3
    for number in (0, 3, 4, 49):
        np.testing.assert_array_equal(whole.vectors[number], client.embed(texts[number], task="retrieval").vectors[0])


def test_no_texts_make_no_vectors_and_no_call(client, fake) -> None:
    assert client.embed([], dimensions=8, encoding="int8").vectors.shape == (0, 8)
    assert fake.requests == []


def test_the_first_failed_text_raises_with_its_place_in_the_whole_list(client) -> None:
    texts = ["a", "b", "c", "d", "e", "fail NOT_FOUND", "fail INTERNAL"]
    with pytest.raises(NotFound, match=r"^text 5: failed: fail NOT_FOUND \(and 1 more of 7 texts failed\)$"):
        client.embed(texts)
    kept = client.embed(texts, errors="return")
    assert {index: type(error) for index, error in kept.errors.items()} == {5: NotFound, 6: EngineFailure}
    assert np.any(kept.vectors[4]) and not np.any(kept.vectors[5])
    with pytest.raises(InvalidRequest, match="errors is 'ignore'"):
        client.embed("a", errors="ignore")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("INTERNAL", EngineFailure),
        ("PERMISSION_DENIED", UnexpectedReply),
    ],
)
def test_a_refused_request_raises_its_class_of_the_tree(client, status: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"refuse {status}"):
        client.embed([f"refuse {status}"])


def test_an_overloaded_server_is_asked_again_after_its_push_back(client, fake) -> None:
    started = time.monotonic()
    client.embed(["overload 2"])
    # Backing off by itself would take 0.1 s and 0.2 s, each within 20 %; the server asked for 0.2 s twice.
    assert time.monotonic() - started >= 0.4
    assert len(fake.requests) == 3


def test_an_overload_that_lasts_is_raised_with_the_push_back(client, fake) -> None:
    with pytest.raises(Overloaded, match="the queue is full") as caught:
        client.embed(["overload 99"])
    assert caught.value.retry_after_s == 0.2
    assert len(fake.requests) == 5


def test_retries_can_be_turned_off(fake) -> None:
    with Client(fake.address, max_attempts=1) as client, pytest.raises(Overloaded):
        client.embed(["overload 1"])
    with pytest.raises(ValueError, match="max_attempts is 6, it must be 1 to 5"):
        Client(fake.address, max_attempts=6)


def test_a_slow_answer_runs_into_the_timeout(client) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        client.embed(["slow 5"], timeout=0.2)


def test_no_server_is_one_clear_sentence() -> None:
    with Client("127.0.0.1:1", max_attempts=1) as client:
        with pytest.raises(Unavailable, match=r"no server answers at 127.0.0.1:1 \(.*refused.*\); start one with"):
            client.embed("a")
        assert not client.is_serving()
        with pytest.raises(DeadlineExceeded, match=r"does not serve after 0.3 s"):
            client.wait_until_serving(timeout=0.3)


def test_a_stream_answers_in_order_and_repeats_what_was_refused_for_overload(client, fake) -> None:
    batches = [["a", "b"], "one", ["overload 1"], [Text("c", task="classification")]]
    answers = list(client.embed_stream(batches, task="retrieval"))
    assert [len(answer) for answer in answers] == [2, 1, 1, 1]
    assert answers[3].spaces == [Space("space-classification")]
    np.testing.assert_array_equal(answers[1].vectors, client.embed("one", task="retrieval").vectors)


def test_a_stream_outlives_a_restart_that_takes_longer_than_grpc_retries(client, fake) -> None:
    answers = list(client.embed_stream([["a"], ["restart 7"], ["b"]]))
    assert [len(answer) for answer in answers] == [1, 1, 1]
    # One on the stream, five of the first call, and the second of the next call is served.
    assert fake.refusals["restart 7"] == 7


def test_a_restart_that_never_ends_is_raised(fake) -> None:
    with Client(fake.address, timeout=0.2, max_attempts=1) as client, pytest.raises(Unavailable, match="restarting"):
        list(client.embed_stream([["restart 9999"]]))


def test_a_stream_reads_its_batches_only_a_window_ahead(client) -> None:
    taken = []

    def batches() -> Iterator[list[str]]:
        for number in range(1000):
            taken.append(number)
            yield [str(number)]

    answers = client.embed_stream(batches(), window=5)
    for number in range(20):
        next(answers)
        assert len(taken) <= number + 1 + 5
    answers.close()
    assert len(taken) <= 26


def test_leaving_a_stream_frees_the_thread_that_feeds_it() -> None:
    feed = RequestFeed(([str(number)] for number in range(1000)), {}, window=2)
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.extend(feed))
    thread.start()
    feed.close()
    thread.join(timeout=5)
    assert not thread.is_alive() and len(taken) <= 2


def test_a_failing_source_of_batches_raises_after_the_answers_it_had(client) -> None:
    def batches() -> Iterator[list[str]]:
        yield ["a"]
        raise ZeroDivisionError("source")

    answers = client.embed_stream(batches())
    assert len(next(answers)) == 1
    with pytest.raises(ZeroDivisionError, match="source"):
        next(answers)


def test_a_batch_refused_as_a_whole_ends_the_stream_and_a_failed_text_need_not(client) -> None:
    with pytest.raises(NotFound, match="refuse NOT_FOUND"):
        list(client.embed_stream([["a"], ["refuse NOT_FOUND"]]))
    answers = list(client.embed_stream([["a", "fail NOT_FOUND"], ["b"]], errors="return"))
    assert [list(answer.errors) for answer in answers] == [[1], []]
    with pytest.raises(InvalidRequest, match="has no texts"):
        list(client.embed_stream([[]]))


def test_tokenize_gives_ids_or_the_reason(client) -> None:
    (text,) = client.tokenize("two words", task="retrieval")
    assert (text.ids, text.tokens, text.prompt) == ([0, 1], ["two", "words"], "Query: ")
    with pytest.raises(NotFound, match="text 1"):
        client.tokenize(["a", "fail NOT_FOUND"])
    kept = client.tokenize(["a", "fail NOT_FOUND"], errors="return")
    assert kept[0].error is None and isinstance(kept[1].error, NotFound)


def test_adapters_are_listed_loaded_and_unloaded(client) -> None:
    assert client.load_adapter("legal/v2", id="legal").id == "legal"
    assert [adapter.id for adapter in client.adapters()] == ["retrieval", "classification", "legal"]
    assert client.load_adapter("other", model="large").model == "large"
    listed, *_ = client.adapters(model="fake")
    assert (listed.model, listed.role) == ("fake", "query") and client.adapters(model="judge") == []
    client.unload_adapter("legal", model="fake")
    with pytest.raises(NotFound, match="'legal' is not loaded"):
        client.unload_adapter("legal")
    with pytest.raises(AdapterRejected, match="rank 96"):
        client.load_adapter("broken")


def test_info_says_what_is_served(client) -> None:
    info = client.info()
    assert info.version == "1.2.3" and info.limits.max_texts == 256
    assert [task.space for task in info.models[0].tasks] == ["space-retrieval", "space-classification"]
    client.wait_until_serving(timeout=5)
    assert client.is_serving()


def test_metadata_goes_with_every_call(fake) -> None:
    with Client(fake.address, metadata=[("authorization", "Bearer secret")]) as client:
        client.embed("a")
    assert fake.metadata[0]["authorization"] == "Bearer secret"


def test_compressed_requests_are_understood(fake) -> None:
    with Client(fake.address, compression="gzip") as client:
        assert len(client.embed(["the same words again and again " * 100])) == 1
