"""Two embedders and a reranker in one server: outputs, instructions, sizes and scores over gRPC, against references."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from end_to_end_support import START_S, Served, serving

from embedmux.client.blocking import Client
from embedmux.client.texts import EmbedOptions, Text
from embedmux.server.errors import InvalidRequest, NotFound

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from model_families import bge_m3, encoder_rerankers, qwen3_embedding

FAMILIES = {
    "m3": bge_m3.FAMILIES[0],
    "judge": next(family for family in encoder_rerankers.FAMILIES if family.name == "bge-reranker-v2-m3"),
    "qwen": qwen3_embedding.FAMILIES[0],
}
TEXTS = ["how do plants eat light", "Leaves build sugar from light, water and air.", "the moon", "light " * 40]
QUERY, *DOCUMENTS = TEXTS
EVERYTHING: EmbedOptions = {"model": "m3", "outputs": ("dense", "sparse", "tokens")}
INSTRUCTION = "Given a question, find {the} answer"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints in the families' exact layout; BGE-M3's heads are converted as its users do it."""
    root = tmp_path_factory.mktemp("models")
    found = {name: root / name for name in FAMILIES}
    for name, family in FAMILIES.items():
        family.build(found[name], "tiny", 5)
    assert embedmux("convert", str(found["m3"])).returncode == 0
    return found


@pytest.fixture(scope="module")
def several(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with all of them."""
    words = [word for name, folder in folders.items() for word in ("--model", f"{name}={folder}")]
    with serving(tmp_path_factory.mktemp("several"), *words, "--threads", "1") as served:
        yield served


@pytest.fixture
def client(several: Served) -> Iterator[Client]:
    with several.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> Any:
    """``reference(name)``: the independent implementation of a model."""
    return cache(lambda name: FAMILIES[name].reference(folders[name]))


def embedmux(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedmux.server.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def test_every_output_is_the_reference_s(client: Client, reference: Any) -> None:
    found, expected = client.embed(TEXTS, **EVERYTHING), reference("m3")
    assert found.sparse is not None and found.tokens is not None
    np.testing.assert_allclose(found.vectors, expected.embed(TEXTS), atol=1e-5)
    num_weights = 0
    for index, text in enumerate(TEXTS):
        weights = {id: weight for id, weight in expected.sparse(text).items() if weight > 0}
        assert found.sparse.weights_of(index) == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(found.tokens.rows_of(index), expected.tokens(text, "document"), atol=1e-5)
        num_weights += len(weights)
    assert num_weights > 10


def test_every_output_has_the_same_bits_alone_and_in_company(client: Client) -> None:
    together = client.embed([*TEXTS, *TEXTS[::-1]], **EVERYTHING)
    for index, text in enumerate(TEXTS):
        alone = client.embed([text], **EVERYTHING)
        for rows in (together[[index]], together[[-1 - index]]):
            assert alone.sparse and rows.sparse and alone.tokens and rows.tokens
            np.testing.assert_array_equal(rows.vectors, alone.vectors)
            np.testing.assert_array_equal(rows.sparse.ids, alone.sparse.ids)
            np.testing.assert_array_equal(rows.sparse.weights, alone.sparse.weights)
            np.testing.assert_array_equal(rows.tokens.vectors, alone.tokens.vectors)


def test_a_text_that_fails_leaves_a_gap_in_every_output(client: Client) -> None:
    found = client.embed(["", TEXTS[1], "light " * 5000, TEXTS[2]], errors="return", **EVERYTHING)
    assert found.sparse is not None and found.tokens is not None
    assert sorted(found.errors) == [0, 2]
    assert all(isinstance(error, InvalidRequest) for error in found.errors.values())
    for index in (0, 2):
        assert not found.vectors[index].any()
        assert found.sparse.weights_of(index) == {} and len(found.tokens.rows_of(index)) == 0
    alone = client.embed([TEXTS[1], TEXTS[2]], **EVERYTHING)
    np.testing.assert_array_equal(found[[1, 3]].vectors, alone.vectors)
    assert found[[1, 3]].tokens.maxsim(alone.tokens).shape == (2, 2)


def test_scores_are_the_reference_s_and_stand_in_their_order(client: Client, reference: Any) -> None:
    logits = reference("judge").score(QUERY, DOCUMENTS)
    assert np.ptp(logits) > 0.1
    found = client.rerank(QUERY, DOCUMENTS)
    assert [document.index for document in found] == np.argsort(-logits).tolist()
    assert (found.model, found.activation) == ("judge", "sigmoid")
    for document in found:
        assert document.logit == pytest.approx(logits[document.index], abs=1e-4)
        assert document.score == pytest.approx(1 / (1 + np.exp(-document.logit)), rel=1e-12)
    best = client.rerank(QUERY, DOCUMENTS, top_n=1)
    assert [document.index for document in best] == [found[0].index]


def test_a_document_scores_the_same_bits_alone_and_among_others(client: Client) -> None:
    found = {document.index: document for document in client.rerank(QUERY, DOCUMENTS * 3)}
    for index, document in enumerate(DOCUMENTS):
        (alone,) = client.rerank(QUERY, [document])
        assert {found[index + 3 * copy].logit for copy in range(3)} == {alone.logit}


def test_a_document_that_fails_costs_the_others_nothing(client: Client) -> None:
    documents = [DOCUMENTS[0], "", "light " * 5000, DOCUMENTS[1]]
    found = client.rerank(QUERY, documents, errors="return")
    assert sorted(found.errors) == [1, 2] and sorted(document.index for document in found) == [0, 3]
    cut = client.rerank(QUERY, documents, errors="return", truncate="end")
    assert sorted(cut.errors) == [1]
    (long,) = [document for document in cut if document.index == 2]
    assert long.is_truncated and long.num_tokens_original > 5000
    with pytest.raises(InvalidRequest, match="query"):
        client.rerank("", DOCUMENTS)


def test_token_vectors_rerank_by_maxsim(client: Client) -> None:
    found = client.embed(TEXTS, model="m3", outputs="tokens")
    assert found.tokens is not None
    scores = found.tokens[0].maxsim(found.tokens[1:])[0] / np.diff(found.tokens[0].offsets)
    ranking = client.rerank(QUERY, DOCUMENTS, model="m3")
    assert ranking.activation == "identity"
    for document in ranking:
        assert document.score == document.logit == pytest.approx(scores[document.index], abs=1e-5)


def test_an_instruction_is_the_template_s_prompt(client: Client, reference: Any) -> None:
    rendered = f"Instruct: {INSTRUCTION}\nQuery:{QUERY}"
    found = client.embed(QUERY, model="qwen", instruction=INSTRUCTION, echo=True)
    assert found.rendered == [rendered]
    literal = client.embed(QUERY, model="qwen", prompt=f"Instruct: {INSTRUCTION}\nQuery:", echo=True)
    assert literal.rendered == [rendered]
    np.testing.assert_array_equal(found.vectors, literal.vectors)
    expected = reference("qwen").embed([QUERY], role="query", instruction=INSTRUCTION)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    documents = client.embed([Text(text, role="document") for text in DOCUMENTS], model="qwen")
    assert found.similarity(documents).shape == (1, 3)


def test_a_size_that_is_not_declared_is_refused_unless_it_is_forced(client: Client) -> None:
    model = next(model for model in client.info().models if model.name == "qwen")
    assert model.any_size_from is not None
    size = model.any_size_from - 1
    with pytest.raises(InvalidRequest, match=f"dimensions is {size}"):
        client.embed(QUERY, model="qwen", dimensions=size)
    forced = client.embed(QUERY, model="qwen", dimensions=size, force_dimensions=True).vectors
    full = client.embed(QUERY, model="qwen").vectors[:, :size]
    np.testing.assert_allclose(forced, full / np.linalg.norm(full), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "judge"}, InvalidRequest, "'judge' is a reranker"),
        ({"model": "gone"}, NotFound, "'gone' is not served here; this server has: m3, qwen, judge"),
        ({"model": "qwen", "outputs": "sparse"}, InvalidRequest, "makes no sparse output"),
        ({"model": "m3", "instruction": "find"}, InvalidRequest, "no template"),
        ({"model": "m3", "outputs": "tokens", "encoding": "int8"}, InvalidRequest, "token vectors have none"),
    ],
    ids=str,
)
def test_what_a_model_does_not_have_is_refused(
    client: Client, options: EmbedOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.embed(QUERY, **options)


def test_the_command_line_lists_models_and_ranks(several: Served) -> None:
    listed = embedmux("tasks", "--server", several.address)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines() if " · " in line] == ["m3", "judge", "qwen"]
    ranked = embedmux("rerank", QUERY, *DOCUMENTS, "--jsonl", "--server", several.address)
    assert ranked.returncode == 0, ranked.stderr
    records = [json.loads(line) for line in ranked.stdout.splitlines()]
    with several.client() as client:
        expected = client.rerank(QUERY, DOCUMENTS)
    assert [(record["text"], record["score"]) for record in records] == [
        (document.document, document.score) for document in expected
    ]
    refused = embedmux("rerank", QUERY, "a", "--model", "qwen", "--server", several.address)
    assert refused.returncode == 1 and "is an embedder and scores no pairs" in refused.stderr
