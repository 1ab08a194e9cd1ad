"""Rerank requests: pairs, templates and token vectors; logits and scores, errors of one document, what was read."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from embedmux.server.bridge.port import Answer
from embedmux.server.config import Limits
from embedmux.server.contract import Activation, Contract, LateContract, Prompts, ScoreContract, ScoreKind
from embedmux.server.errors import EmbedmuxError, EngineFailure, InvalidRequest, NotFound, Overloaded
from embedmux.server.facts import ModelInfo
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Pooling, Terms, Tokens, Truncate
from embedmux.server.requests import RerankJob
from embedmux.server.rerank import Reranker
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
MODEL = ModelInfo("judge", "b" * 64, "bert", 8, 64, "cls", "float32", "cpu", {}, {}, "none", kind="reranker")
PAIR = Contract(
    "test", "bert", 40, Pooling.CLS, (8,), outputs=(Output.SCORE,), score=ScoreContract(ScoreKind.CLASSIFIER)
)
QWEN = replace(
    PAIR,
    max_tokens=400,
    score=ScoreContract(
        ScoreKind.LOGITS,
        before="<|im_start|>judge\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
        after="<|im_end|>\nyes or no\n",
        instruction="is it relevant?",
    ),
)
ZERANK = replace(
    QWEN,
    score=ScoreContract(
        ScoreKind.LOGITS,
        temperature=5.0,
        before="<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n",
        after="<|im_end|>\n",
        strips=True,
    ),
)
COLBERT = replace(
    PAIR, score=None, outputs=(Output.TOKENS,),
    late=LateContract(6, query_marker=5, document_marker=6, query_tokens=12, mask_token=4, skipped=(1,)),
)  # fmt: skip
DOCUMENTS = ("the moon pulls the sea", "seven quiet dragons", "a lazy dog")


class FakeEngine:
    """A logit of each sequence's ids, or a vector of each token's id; ``errors`` by place fail."""

    model = MODEL

    def __init__(self, errors: dict[int, EmbedmuxError] | None = None) -> None:
        self.errors = errors or {}
        self.calls: list[tuple[list[Tokens], OutputSpec]] = []

    def expect(self, num_characters: int, terms: Terms) -> None: ...

    async def embed(self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms) -> Answer:
        assert adapters == [BASE_MODEL] * len(tokens)
        self.calls.append((tokens, output))
        if output.outputs == (Output.SCORE,):
            return struct.pack(f"<{len(tokens)}f", *(logit_of(text.ids) for text in tokens)), self.errors
        parts = []
        for text in tokens:
            vectors = np.stack([vector_of(token, output.token_dimensions) for token in text.ids])
            parts.append(struct.pack("<I", len(vectors)) + vectors.tobytes())
        return b"".join(parts), self.errors


def logit_of(ids: list[int]) -> float:
    return math.sin(sum(at * token for at, token in enumerate(ids))) * 4


def vector_of(token: int, dimensions: int) -> np.ndarray:
    found = np.random.default_rng(token).standard_normal(dimensions).astype("<f4")
    return found / np.linalg.norm(found)


def make(folder: Path, contract: Contract, engine: FakeEngine | None = None, limits: Limits | None = None) -> Reranker:
    return Reranker(contract, Tokenizer(folder, contract), engine or FakeEngine(), limits or Limits())  # type: ignore[arg-type]


def job(query: str = "how do tides work", documents: tuple[str, ...] = DOCUMENTS, **more: object) -> RerankJob:
    return RerankJob(query, documents, **more)  # type: ignore[arg-type]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


async def test_pairs_are_scored_by_the_activated_logit(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    found = await make(tokenizer_folder("bert"), PAIR, engine).rerank(job())
    ((tokens, output),) = engine.calls
    assert output == OutputSpec(8, Encoding.FLOAT32, (Output.SCORE,))
    library = Library.from_file(str(tokenizer_folder("bert") / "tokenizer.json"))
    for document, text in zip(DOCUMENTS, tokens, strict=True):
        assert text.ids == library.encode("how do tides work", document).ids
    assert found.logits == pytest.approx([logit_of(text.ids) for text in tokens], rel=1e-6)
    assert found.scores == pytest.approx([sigmoid(logit) for logit in found.logits], rel=1e-12)
    assert found.num_tokens == found.num_tokens_original == [len(text.ids) for text in tokens]
    assert (found.errors, found.rendered) == ({}, [])


async def test_temperature_and_activation_are_the_contract_s(tokenizer_folder: Folder) -> None:
    found = await make(tokenizer_folder("bytes"), ZERANK).rerank(job())
    assert found.scores == pytest.approx([sigmoid(logit / 5) for logit in found.logits], rel=1e-12)
    assert PAIR.score is not None
    plain = replace(PAIR, score=replace(PAIR.score, activation=Activation.IDENTITY))
    found = await make(tokenizer_folder("bert"), plain).rerank(job())
    assert found.scores == found.logits


async def test_huge_logits_do_not_overflow(tokenizer_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "logit_of", lambda ids: 2000.0 if len(ids) % 2 else -2000.0)
    found = await make(tokenizer_folder("bert"), PAIR).rerank(job(documents=("the", "the the")))
    assert sorted(found.scores) == [0.0, 1.0]


async def test_the_template_s_front_is_shared_by_all_documents(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    found = await make(tokenizer_folder("bytes"), QWEN, engine).rerank(job("what {instruction}?", echoes=True))
    ((tokens, _),) = engine.calls
    before = "<|im_start|>judge\n<Instruct>: is it relevant?\n<Query>: what {instruction}?\n<Document>: "
    assert found.rendered == [f"{before}{document}<|im_end|>\nyes or no\n" for document in DOCUMENTS]
    library = Library.from_file(str(tokenizer_folder("bytes") / "tokenizer.json"))
    assert [text.ids for text in tokens] == [library.encode(rendered).ids for rendered in found.rendered]
    alone = library.encode(before).ids
    for text in tokens:
        # The space at the end is joined to the document's first word.
        assert text.shared == len(alone) - 1 and text.ids[: text.shared] == alone[:-1]


async def test_a_query_that_leaves_no_room_is_refused_once_and_by_its_name(tokenizer_folder: Folder) -> None:
    for truncate in Truncate:
        with pytest.raises(InvalidRequest, match=r"the query has \d+ tokens with its instruction .* reads 400"):
            await make(tokenizer_folder("bytes"), QWEN).rerank(job("moon " * 500, truncate=truncate))


async def test_an_instruction_takes_the_default_s_place(tokenizer_folder: Folder) -> None:
    found = await make(tokenizer_folder("bytes"), QWEN).rerank(job(instruction="{query} only", echoes=True))
    assert found.rendered[0].startswith("<|im_start|>judge\n<Instruct>: {query} only\n<Query>: how do tides work\n")


@pytest.mark.parametrize("kind", ["bert", "bytes"])
async def test_instructions_without_a_place_are_refused(tokenizer_folder: Folder, kind: str) -> None:
    reranker = make(tokenizer_folder(kind), PAIR if kind == "bert" else ZERANK)
    with pytest.raises(InvalidRequest, match="this reranker's template takes no instruction; leave it out"):
        await reranker.rerank(job(instruction="x"))
    with pytest.raises(InvalidRequest, match="the instruction is empty"):
        await make(tokenizer_folder("bytes"), QWEN).rerank(job(instruction=""))


async def test_texts_are_stripped_where_the_model_s_code_does(tokenizer_folder: Folder) -> None:
    asked = job("  why ", (" the moon\n", "  "), echoes=True)
    found = await make(tokenizer_folder("bytes"), ZERANK).rerank(asked)
    assert found.rendered == ["<|im_start|>system\nwhy<|im_end|>\n<|im_start|>user\nthe moon<|im_end|>\n", ""]
    assert "the document is empty" in str(found.errors[1])
    found = await make(tokenizer_folder("bytes"), QWEN).rerank(asked)
    assert "<Query>:   why \n<Document>:  the moon\n<|im_end|>" in found.rendered[0] and not found.errors


async def test_only_the_document_is_cut(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    contract = replace(QWEN, max_tokens=100)
    library = Library.from_file(str(tokenizer_folder("bytes") / "tokenizer.json"))
    documents = ("the moon", "sea " * 200)
    found = await make(tokenizer_folder("bytes"), contract, engine).rerank(
        job(documents=documents, truncate=Truncate.END)
    )
    assert found.num_tokens[1] == 100 < found.num_tokens_original[1]
    ((tokens, _),) = engine.calls
    after = library.encode("<|im_end|>\nyes or no\n").ids
    assert tokens[1].ids[-len(after) :] == after
    assert tokens[1].ids[: tokens[0].shared] == tokens[0].ids[: tokens[0].shared]
    refused = await make(tokenizer_folder("bytes"), contract).rerank(job(documents=documents))
    assert set(refused.errors) == {1} and "the model reads 100" in str(refused.errors[1])


async def test_the_model_s_limit_is_a_pair_s(tokenizer_folder: Folder) -> None:
    for contract, kind in ((PAIR, "bert"), (QWEN, "bytes")):
        short = replace(contract, max_tokens=80)
        found = await make(tokenizer_folder(kind), short).rerank(job(documents=("sea " * 300,), truncate=Truncate.END))
        assert found.num_tokens == [80]


async def test_one_bad_document_does_not_hurt_the_others(tokenizer_folder: Folder) -> None:
    engine = FakeEngine(errors={1: EngineFailure("not finite")})
    documents = ("", "the moon", "seven", "the sea", "moon " * 60)
    found = await make(tokenizer_folder("bert"), PAIR, engine).rerank(job(documents=documents))
    assert {at: type(error) for at, error in found.errors.items()} == {
        0: InvalidRequest,
        2: EngineFailure,
        4: InvalidRequest,
    }
    ((tokens, _),) = engine.calls
    good = [logit_of(tokens[0].ids), logit_of(tokens[2].ids)]
    assert [found.logits[1], found.logits[3]] == pytest.approx(good, rel=1e-6)
    assert all((found.logits[at], found.scores[at]) == (0.0, 0.0) for at in found.errors)
    assert found.num_tokens[0] == found.num_tokens[4] == 0


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (job(documents=()), InvalidRequest, "the request has no documents; send at least one"),
        (job(documents=("x",) * 9), InvalidRequest, r"has 9 documents, the limit is 8 \(max_texts\)"),
        (job(""), InvalidRequest, "the query is empty; send at least one character"),
        (job("moon " * 60), InvalidRequest, "the query has 60 tokens, the model reads 30 beside a document"),
        (job("why" * 100, ("x" * 300,) * 8), InvalidRequest, "documents with their prompts have 4800 characters"),
        (job(model="other"), NotFound, "'other' is not served here; this server has 'judge'"),
    ],
)
async def test_what_concerns_the_whole_request_is_raised(
    tokenizer_folder: Folder, asked: RerankJob, error: type[EmbedmuxError], words: str
) -> None:
    reranker = make(tokenizer_folder("bert"), PAIR, limits=Limits(max_texts=8, max_message_bytes=4000))
    with pytest.raises(error, match=words):
        await reranker.rerank(asked)


async def test_an_engine_s_error_of_the_whole_request_is_raised(tokenizer_folder: Folder) -> None:
    for contract in (PAIR, COLBERT):
        with pytest.raises(Overloaded):
            await make(tokenizer_folder("bert"), contract, FakeEngine({1: Overloaded("full")})).rerank(job())


def max_sim(query: list[int], document: list[int]) -> np.ndarray:
    """The best similarity of each token of the query, in float64."""
    sides = [np.stack([vector_of(token, 6) for token in ids]).astype(np.float64) for ids in (query, document)]
    return np.array([max(row @ column for column in sides[1]) for row in sides[0]])


async def test_late_interaction_sums_the_best_of_each_query_token(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    found = await make(tokenizer_folder("bert"), COLBERT, engine).rerank(job(echoes=True))
    ((tokens, output),) = engine.calls
    assert output == OutputSpec(8, Encoding.FLOAT32, (Output.TOKENS,), 6)
    query, *documents = (text.ids for text in tokens)
    assert query[:2] == [2, 5] and len(query) == 12 and all(ids[:2] == [2, 6] for ids in documents)
    wanted = [max_sim(query, [token for token in ids if token != 1]).sum() for ids in documents]
    assert found.logits == pytest.approx(wanted, abs=1e-5)
    assert found.scores == found.logits
    assert found.num_tokens == [12 + len(ids) for ids in documents]
    assert found.rendered == list(DOCUMENTS)


async def test_a_mean_leaves_out_the_first_token_of_both_sides(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    m3 = replace(COLBERT, late=LateContract(6, skips_first=True, is_mean=True))
    found = await make(tokenizer_folder("xlm-r"), m3, engine).rerank(job())
    ((tokens, _),) = engine.calls
    query, *documents = (text.ids[1:] for text in tokens)
    assert found.logits == pytest.approx([max_sim(query, ids).mean() for ids in documents], abs=1e-5)


async def test_late_interaction_reads_prompts_and_instructions(tokenizer_folder: Folder) -> None:
    prompts = Prompts({"query": "ask: ", "document": "hold: "})
    contract = replace(COLBERT, late=LateContract(6), prompts=prompts, template="Do {instruction}: ", suffix="!")
    engine = FakeEngine()
    reranker = make(tokenizer_folder("bert"), contract, engine)
    library = Library.from_file(str(tokenizer_folder("bert") / "tokenizer.json"))
    for instruction, prompt in ((None, "ask: "), ("find", "Do find: ")):
        found = await reranker.rerank(job("why", instruction=instruction, echoes=True))
        assert found.rendered == [f"hold: {document}!" for document in DOCUMENTS]
        assert engine.calls[-1][0][0].ids == library.encode(f"{prompt}why!").ids
    with pytest.raises(InvalidRequest, match="takes no instruction"):
        await make(tokenizer_folder("bert"), COLBERT).rerank(job(instruction="x"))


async def test_a_document_alone_has_the_bits_it_has_among_others(tokenizer_folder: Folder) -> None:
    reranker = make(tokenizer_folder("bert"), COLBERT)
    together = await reranker.rerank(job())
    alone = [(await reranker.rerank(job(documents=(document,)))).logits[0] for document in DOCUMENTS]
    assert alone == together.logits


async def test_errors_of_late_interaction_belong_to_query_or_document(tokenizer_folder: Folder) -> None:
    with pytest.raises(InvalidRequest, match=r"the query cannot be read: the text has .* tokens, the model reads 12"):
        await make(tokenizer_folder("bert"), COLBERT).rerank(job("moon " * 20))
    with pytest.raises(EngineFailure, match="broken"):
        await make(tokenizer_folder("bert"), COLBERT, FakeEngine({0: EngineFailure("broken")})).rerank(job())
    comma = Tokenizer(tokenizer_folder("bert"), PAIR).library.token_to_id(",")
    contract = replace(COLBERT, late=replace(COLBERT.late or LateContract(6), skipped=(2, 6, comma, 3)))
    documents = ("the moon", "moon " * 60, ",", "the sea")
    found = await make(tokenizer_folder("bert"), contract, FakeEngine({1: EngineFailure("broken")})).rerank(
        job(documents=documents)
    )
    wanted = {0: "broken", 1: "the text has 63 tokens, ", 2: "the document has no toke"}
    assert {at: str(error)[:24] for at, error in found.errors.items()} == wanted
    assert found.logits[3] != 0
