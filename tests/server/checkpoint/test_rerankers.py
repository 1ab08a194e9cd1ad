"""Rerankers: where the logit comes from, what stands around a document, and what becomes of the logit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint_folders as made
import pytest
from checkpoint_folders import config, module, prompted, transformer, vocabulary, write

from embedmux.server.checkpoint.read import read_contract
from embedmux.server.checkpoint.rerankers import RERANKERS
from embedmux.server.contract import Activation, LateContract, ScoreContract, ScoreKind
from embedmux.server.errors import ModelRejected
from embedmux.server.records import Output, Pooling

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
ONE_LABEL = {"id2label": {"0": "LABEL_0"}}
PAIR = ScoreContract(ScoreKind.CLASSIFIER)
JUDGE = ScoreContract(
    ScoreKind.LOGITS,
    before=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
    ),
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    positive_token=1,
    negative_token=0,
)
ZERANK = ScoreContract(
    ScoreKind.LOGITS,
    temperature=5.0,
    before="<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    strips=True,
    positive_token=2,
)
WORDS = vocabulary("no", "yes", "Yes")


def classifier(model_type: str, name: str, **more: Any) -> dict[str, Any]:
    """config.json of a sequence classifier with one label."""
    return config(model_type, f"{name}ForSequenceClassification", **ONE_LABEL, **more)


def scored(**ids: int) -> dict[str, Any]:
    """modules.json and 1_LogitScore of a reranker that sentence-transformers 5 and later can open."""
    room = "sentence_transformers.cross_encoder.modules.logit_score"
    modules = [transformer("sentence_transformers.base.modules.transformer.Transformer"), module(1, "LogitScore", room)]
    return {"modules.json": modules, "1_LogitScore/config.json": ids}


ROWS: list[tuple[str, list[Any], str, Pooling, ScoreContract]] = [
    ("bge-reranker-v2-m3", [classifier("xlm-roberta", "XLMRoberta")], "cross-encoder", Pooling.CLS, PAIR),
    ("ms-marco", [classifier("bert", "Bert")], "cross-encoder", Pooling.CLS, PAIR),
    ("gte-multilingual-reranker-base", [classifier("new", "New")], "cross-encoder", Pooling.CLS, PAIR),
    (
        "granite-embedding-reranker-english-r2",
        [classifier("modernbert", "ModernBert", classifier_pooling="cls")],
        "cross-encoder",
        Pooling.CLS,
        PAIR,
    ),
    (
        "gte-reranker-modernbert-base",
        [classifier("modernbert", "ModernBert", classifier_pooling="mean")],
        "cross-encoder",
        Pooling.MEAN,
        PAIR,
    ),
    ("Qwen3-Reranker-0.6B", [made.QWEN3, WORDS], "qwen3-reranker", Pooling.LAST, JUDGE),
    (
        "judge",
        [made.QWEN3, WORDS, scored(true_token_id=1, false_token_id=0), prompted("query", query="Find laws")],
        "qwen3-reranker",
        Pooling.LAST,
        replace(JUDGE, instruction="Find laws"),
    ),
    (
        "Qwen3-Reranker-4B-seq-cls",
        [classifier("qwen3", "Qwen3"), WORDS],
        "qwen3-reranker",
        Pooling.LAST,
        replace(JUDGE, kind=ScoreKind.CLASSIFIER, positive_token=None, negative_token=None),
    ),
    ("zero", [made.QWEN3, WORDS, scored(true_token_id=2)], "zerank", Pooling.LAST, ZERANK),
    (
        "zerank-2",
        [classifier("qwen3", "Qwen3"), WORDS],
        "zerank",
        Pooling.LAST,
        replace(ZERANK, kind=ScoreKind.CLASSIFIER, positive_token=None),
    ),
]


@pytest.mark.parametrize(("name", "files", "family", "pooling", "score"), ROWS, ids=[row[0] for row in ROWS])
def test_a_reranker_has_its_template_and_its_score(
    tmp_path: Path, name: str, files: list[Any], family: str, pooling: Pooling, score: ScoreContract
) -> None:
    contract = read_contract(write(tmp_path / name, *files))
    assert (contract.family, contract.pooling, contract.outputs) == (family, pooling, (Output.SCORE,))
    assert contract.score == score


def test_every_reranker_has_a_row() -> None:
    served = {family.name for family in RERANKERS if family.refusal is None}
    assert served == {row[2] for row in ROWS} | {"jina-reranker-v3"}


def test_zerank_reads_no_more_than_its_published_code(tmp_path: Path) -> None:
    assert read_contract(write(tmp_path / "zerank-2", made.QWEN3, WORDS)).max_tokens == 8192


def test_a_listwise_reranker_compares_the_states_at_its_markers(tmp_path: Path) -> None:
    code = {"AutoModel": "modeling.JinaForRanking"}
    folder = write(
        tmp_path,
        config("qwen3", "JinaForRanking", max_position_embeddings=131072, auto_map=code),
        vocabulary("a", "<|embed_token|>", "<|rerank_token|>"),
        {"model.safetensors": made.weights(projector__0__weight=(32, 64), projector__2__weight=(24, 32))},
    )
    contract = read_contract(folder)
    assert contract.score == ScoreContract(ScoreKind.LISTWISE, Activation.IDENTITY)
    assert contract.late == LateContract(24, kept=(1, 2), is_normalized=False)
    assert contract.max_tokens == 131072


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {}),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}),
        ({}, {"config_sentence_transformers.json": {"activation_fn": IDENTITY}}),
    ],
    ids=["since 4.0", "before 4.0", "since 5.4"],
)
def test_the_activation_is_that_of_sentence_transformers(
    tmp_path: Path, values: dict[str, Any], files: dict[str, Any]
) -> None:
    score = read_contract(write(tmp_path, classifier("bert", "Bert") | values, files)).score
    assert score is not None
    assert score.activation is Activation.IDENTITY


@pytest.mark.parametrize(
    ("values", "files", "message"),
    [
        (
            config("bert", "BertForSequenceClassification", id2label={"0": "no", "1": "maybe", "2": "yes"}),
            {},
            r"config\.json: it has 3 labels \(id2label\)",
        ),
        (config("bert", "BertForSequenceClassification"), {}, "it has 2 labels"),
        (config("bert", "BertForSequenceClassification", num_labels=5), {}, "it has 5 labels"),
        (
            classifier("bert", "Bert", sbert_ce_default_activation_function="torch.nn.modules.activation.Tanh"),
            {},
            "sbert_ce_default_activation_function is 'torch.nn.modules.activation.Tanh'",
        ),
        (classifier("modernbert", "ModernBert", classifier_pooling="max"), {}, "classifier_pooling is 'max'"),
        (classifier("qwen3", "Qwen3"), {}, "decoder reranker .* how it reads a query with a document is not known"),
        (classifier("qwen2", "Qwen2"), {}, "decoder reranker .* is not served"),
        (made.QWEN3, WORDS | scored(true_token_id=5), "decoder reranker .* is not served"),
    ],
    ids=["three labels", "two by default", "five", "tanh", "max", "qwen3", "qwen2", "other tokens"],
)
def test_a_reranker_that_would_be_scored_wrongly_is_refused(
    tmp_path: Path, values: dict[str, Any], files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelRejected, match=message):
        read_contract(write(tmp_path, values, files))


def test_a_reranker_without_the_tokens_it_compares_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"tokenizer\.json has no token 'no'"):
        read_contract(write(tmp_path / "qwen3-reranker-8b", made.QWEN3, vocabulary("yes")))
