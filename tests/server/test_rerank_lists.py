"""Listwise reranking: cosines of projected markers, and how the query's vectors of several blocks become one."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedmux.server.config import Limits
from embedmux.server.contract import Activation, Contract, LateContract, ScoreContract, ScoreKind
from embedmux.server.errors import EmbedmuxError, EngineFailure, InvalidRequest
from embedmux.server.facts import ModelInfo
from embedmux.server.records import Encoding, Output, OutputSpec, Pooling, Terms, Tokens
from embedmux.server.requests import RerankJob
from embedmux.server.rerank import Reranker
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
MODEL = ModelInfo("lists", "b" * 64, "decoder", 8, 64, "last", "float32", "cpu", {}, {}, "none", kind="reranker")
DIMENSIONS = 6


class FakeEngine:
    """A random vector, of any length, at every marker of a sequence, as the projector would give."""

    model = MODEL

    def __init__(self, markers: tuple[int, int], errors: dict[int, EmbedmuxError] | None = None) -> None:
        self.markers = markers
        self.errors = errors or {}
        self.blocks: list[np.ndarray] = []  # of the last call, markers in order: documents, then the query
        self.tokens: list[Tokens] = []

    def expect(self, num_characters: int, terms: Terms) -> None:
        """Takes all."""

    async def embed(
        self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> tuple[bytes, dict[int, EmbedmuxError]]:
        assert output == OutputSpec(8, Encoding.FLOAT32, (Output.TOKENS,), DIMENSIONS, most_vectors=126)
        self.tokens, self.blocks, rows = tokens, [], []
        for number, text in enumerate(tokens):
            places = [at for at, token in enumerate(text.ids) if token in self.markers]
            random = np.random.default_rng([number, len(places)])
            vectors = (random.standard_normal((len(places), DIMENSIONS)) * random.uniform(1, 9)).astype("<f4")
            self.blocks.append(vectors.astype(np.float64))
            part = struct.pack("<I", len(vectors)) + vectors.tobytes()
            rows.append(part.ljust(output.row_bytes(len(text.ids)), b"\0"))
        return b"".join(rows), self.errors


def make(folder: Path, errors: dict[int, EmbedmuxError] | None = None, **more: object) -> tuple[Reranker, FakeEngine]:
    found = Tokenizer(folder, Contract("test", "decoder", 64, Pooling.LAST, (8,))).library
    markers = found.token_to_id("<|embed_token|>"), found.token_to_id("<|rerank_token|>")
    contract = Contract(
        "jina-reranker-v3",
        "decoder",
        20_000,
        Pooling.LAST,
        (8,),
        outputs=(Output.TOKENS,),
        late=LateContract(DIMENSIONS, kept=markers),
        score=ScoreContract(ScoreKind.LISTWISE, Activation.IDENTITY),
    )
    engine = FakeEngine(markers, errors)
    return Reranker(contract, Tokenizer(folder, contract), engine, Limits(**more)), engine  # type: ignore[arg-type]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


async def test_one_block_scores_by_cosine(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"))
    found = await reranker.rerank(RerankJob("why", ("the moon", "sea", "seven dragons"), echoes=True))
    (vectors,) = engine.blocks
    assert found.logits == pytest.approx([cosine(vectors[at], vectors[3]) for at in range(3)], abs=1e-12)
    assert found.scores == found.logits
    assert len(set(found.rendered)) == 1 and '<passage id="2">\nseven dragons<|embed_token|>' in found.rendered[0]
    assert all(found.num_tokens) and found.num_tokens == found.num_tokens_original


async def test_the_query_of_several_blocks_is_their_weighted_mean(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"))
    found = await reranker.rerank(RerankJob("why", ("sea",) * 300))
    assert [len(vectors) - 1 for vectors in engine.blocks] == [125, 125, 50]
    weights = [max((1 + cosine(vector, each[-1])) / 2 for vector in each[:-1]) for each in engine.blocks]
    query = sum(weight * each[-1] for weight, each in zip(weights, engine.blocks, strict=True)) / sum(weights)
    documents = np.concatenate([vectors[:-1] for vectors in engine.blocks])
    assert found.logits == pytest.approx([cosine(vector, query) for vector in documents], abs=1e-12)


async def test_documents_of_white_space_score_zero_unread(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"))
    found = await reranker.rerank(RerankJob("why", (" \n", "sea", "", "moon")))
    (vectors,) = engine.blocks
    assert len(vectors) == 3
    assert (found.logits[0], found.num_tokens[0]) == (0.0, 0)
    assert set(found.errors) == {2}
    assert found.logits[1] == pytest.approx(cosine(vectors[0], vectors[2]))
    assert found.logits[3] == pytest.approx(cosine(vectors[1], vectors[2]))
    alone = await reranker.rerank(RerankJob("why", (" ",)))
    assert (alone.logits, alone.errors) == ([0.0], {})


async def test_a_failed_block_is_the_error_of_its_documents(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"), {0: EngineFailure("broken")})
    found = await reranker.rerank(RerankJob("why", ("sea",) * 130))
    assert set(found.errors) == set(range(125))
    assert found.logits[125:] == pytest.approx([cosine(each, engine.blocks[1][5]) for each in engine.blocks[1][:5]])


async def test_an_over_long_document_is_its_own_error(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"))
    found = await reranker.rerank(RerankJob("why", ("sea", "7" * 3000, "moon")))
    assert set(found.errors) == {1} and "the model reads 2048 of a document" in str(found.errors[1])
    (vectors,) = engine.blocks
    assert [found.logits[0], found.logits[2]] == pytest.approx([cosine(vectors[at], vectors[2]) for at in (0, 1)])


async def test_echoes_of_long_lists_are_bounded(tokenizer_folder: Folder) -> None:
    reranker, _ = make(tokenizer_folder("bytes"), max_message_bytes=20_000)
    asked = RerankJob("why", ("the moon pulls the sea",) * 60, echoes=True)
    with pytest.raises(InvalidRequest, match=r"the echoed documents with their prompts have .* the limit is 20000"):
        await reranker.rerank(asked)


async def test_a_wrong_number_of_vectors_is_our_failure(tokenizer_folder: Folder) -> None:
    reranker, engine = make(tokenizer_folder("bytes"))
    engine.markers = (engine.markers[0], -1)
    with pytest.raises(EngineFailure, match="gave 2 vectors for 3 markers"):
        await reranker.rerank(RerankJob("why", ("sea", "moon")))
