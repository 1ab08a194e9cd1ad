"""Outputs, instructions and echoes through both clients, in one request, in several and on a stream."""

from collections.abc import Iterator

import numpy as np
import pytest

from embedmux.client.aio import AsyncClient
from embedmux.client.blocking import Client
from embedmux.client.texts import EmbedOptions, Text
from embedmux.client.vectors import Embeddings

OPTIONS: EmbedOptions = {"outputs": ("dense", "sparse", "tokens"), "echo": True, "encoding": "float16"}
TEXTS = ["a b", "b b c", "fail NOT_FOUND", "d", "a"]


@pytest.fixture
def client(fake) -> Iterator[Client]:
    with Client(fake.address, timeout=10, batch_size=2) as client:
        yield client


def check(embeddings: Embeddings) -> None:
    """What the fake answers to TEXTS."""
    assert embeddings.sparse is not None and embeddings.tokens is not None
    assert embeddings.vectors.shape == (5, 12) and embeddings.vectors.dtype == np.float16
    assert np.diff(embeddings.sparse.offsets).tolist() == [2, 2, 0, 1, 1]
    assert sorted(embeddings.sparse.weights_of(1).values()) == [1.0, 2.0]
    assert np.diff(embeddings.tokens.offsets).tolist() == [2, 3, 0, 1, 1]
    np.testing.assert_array_equal(embeddings.tokens.rows_of(0)[1], embeddings.tokens.rows_of(1)[0])
    assert embeddings.tokens.vectors.dtype == np.float16
    assert embeddings.rendered == ["|a b", "|b b c", "", "|d", "|a"]
    good = embeddings[[0, 1, 3, 4]]
    assert good.sparse is not None and good.tokens is not None
    np.testing.assert_array_equal(
        good.sparse.dot(good.sparse), [[2, 2, 0, 1], [2, 5, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    )
    assert good.tokens.maxsim(good.tokens)[3, 0] == pytest.approx(1, abs=1e-3)


def test_every_output_comes_back_from_a_list_that_is_split(client, fake) -> None:
    check(client.embed(TEXTS, errors="return", **OPTIONS))
    assert len(fake.requests) == 3


async def test_the_same_on_asyncio(fake) -> None:
    async with AsyncClient(fake.address, timeout=10, batch_size=2) as client:
        check(await client.embed(TEXTS, errors="return", **OPTIONS))
        answers = [answer async for answer in client.embed_stream([TEXTS], errors="return", **OPTIONS)]
    check(answers[0])


def test_the_same_on_a_stream(client) -> None:
    (answer,) = client.embed_stream([TEXTS], errors="return", **OPTIONS)
    check(answer)


def test_only_sparse_weights_mean_no_dense_vectors(client) -> None:
    found = client.embed(["a b"], outputs="sparse")
    assert found.dimensions == 0 and found.vectors.shape == (1, 0) and found.tokens is None
    assert found.sparse is not None and len(found.sparse.weights_of(0)) == 2


def test_no_texts_have_every_output_of_no_texts(client) -> None:
    nothing = client.embed([], **OPTIONS)
    assert nothing.sparse is not None and nothing.tokens is not None
    assert len(nothing) == len(nothing.sparse) == len(nothing.tokens) == 0


def test_an_instruction_reaches_the_model_and_the_echo_shows_it(client) -> None:
    texts = [Text("cats", instruction="find animals"), "dogs"]
    assert client.embed(texts, instruction="find pets", echo=True).rendered == ["find animals|cats", "find pets|dogs"]


def test_info_tells_a_models_contract(client) -> None:
    model, judge = client.info().models
    assert (model.family, model.kind, model.sizes, model.any_size_from) == ("fakes", "embedder", (12, 4), 8)
    assert model.outputs == ("dense", "sparse", "tokens") and model.notes == ("answers by rule",)
    assert (model.template, model.default_instruction) == ("Instruct: {instruction}\nQuery:", "find it")
    assert (judge.kind, judge.activation, judge.outputs, judge.any_size_from) == ("reranker", "sigmoid", (), None)
