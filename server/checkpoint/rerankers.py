"""Known rerankers: how each reads a query with a document, and where its logit comes from."""

from __future__ import annotations

from dataclasses import replace

from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.headers import model_shape
from embedmux.server.checkpoint.modules import IDENTITY
from embedmux.server.contract import Activation, Contract, LateContract, ScoreContract, ScoreKind
from embedmux.server.records import Output, Pooling

SIGMOID = "torch.nn.modules.activation.Sigmoid"
ENCODERS = ("bert", "xlm-roberta", "roberta", "modernbert", "gte", "new")
CLASSIFIER_POOLING = {"cls": Pooling.CLS, "mean": Pooling.MEAN}
QWEN3_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: "
)
QWEN3_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
# The card's own, and the default prompt of the published checkpoints that have one. The examples beside the paper say
# "Given the user query, retrieval the relevant passages"; a request may send that.
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
ZERANK_BEFORE = "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n"
ZERANK_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
ZERANK_TEMPERATURE = 5.0


def _is_classifier(evidence: Evidence) -> bool:
    return evidence.is_class("ForSequenceClassification")


def _scored(contract: Contract, score: ScoreContract) -> Contract:
    return replace(contract, outputs=(Output.SCORE,), score=score)


def _pair(evidence: Evidence, contract: Contract) -> Contract:
    """A cross-encoder: the tokenizer's own pair, one label on the pooled token."""
    _require_one_label(evidence)
    pooling = Pooling.CLS
    if evidence.model_type == "modernbert":
        named = evidence.config.string("classifier_pooling", "cls")
        if named not in CLASSIFIER_POOLING:
            evidence.config.reject("classifier_pooling", f"one of {sorted(CLASSIFIER_POOLING)}")
        pooling = CLASSIFIER_POOLING[named]
    return _scored(replace(contract, pooling=pooling), ScoreContract(ScoreKind.CLASSIFIER, _activation(evidence)))


def _require_one_label(evidence: Evidence) -> None:
    labels = evidence.config.get("num_labels")
    if labels is None:
        labels = len(evidence.config.section("id2label").values) or 2  # transformers' own default
    if labels != 1:
        evidence.folder.reject(f"config.json: it has {labels} labels (id2label); only rerankers, with one, are served")


def _activation(evidence: Evidence) -> Activation:
    """What sentence-transformers puts on the logit: said in one of three places, the sigmoid where it is not."""
    config, section = evidence.config, evidence.config.section("sentence_transformers")
    for place, key in (
        (section, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
        (evidence.settings, "activation_fn"),
    ):
        if place.get(key) is not None:
            place.require(key, SIGMOID, IDENTITY)
            return Activation.IDENTITY if place.get(key) == IDENTITY else Activation.SIGMOID
    return Activation.SIGMOID


def _is_qwen3_reranker(evidence: Evidence) -> bool:
    scores, tokens = evidence.modules.scores, evidence.tokens
    return scores is not None and (scores.get("true_token_id"), scores.get("false_token_id")) == (
        tokens.find("yes"),
        tokens.find("no"),
    )


def _is_zerank(evidence: Evidence) -> bool:
    scores = evidence.modules.scores
    return scores is not None and scores.get("true_token_id") == evidence.tokens.find("Yes")


def _judge(evidence: Evidence, contract: Contract) -> Contract:
    """Qwen3-Reranker: yes against no at the last position, or the same difference stored as one label's weights."""
    own = evidence.prompts
    return _scored(
        replace(contract, pooling=Pooling.LAST),
        _from_decoder(
            evidence,
            ScoreContract(
                ScoreKind.LOGITS,
                before=QWEN3_BEFORE,
                after=QWEN3_AFTER,
                instruction=own.by_name[own.default_name] if own.default_name else QWEN3_INSTRUCTION,
            ),
            ("yes", "no"),
        ),
    )


def _zerank(evidence: Evidence, contract: Contract) -> Contract:
    """zerank-2: Yes at the last position over a temperature; older revisions store that row as one label's weights."""
    score = ScoreContract(
        ScoreKind.LOGITS,
        temperature=ZERANK_TEMPERATURE,
        before=ZERANK_BEFORE,
        after=ZERANK_AFTER,
        strips=True,
    )
    return _scored(replace(contract, pooling=Pooling.LAST), _from_decoder(evidence, score, ("Yes",)))


def _from_decoder(evidence: Evidence, score: ScoreContract, words: tuple[str, ...]) -> ScoreContract:
    """The score's head: a classifier with one label, or the language model's rows of one or two tokens."""
    if _is_classifier(evidence):
        _require_one_label(evidence)
        return replace(score, kind=ScoreKind.CLASSIFIER)
    scores = evidence.modules.scores
    if scores is not None:
        found = [scores.integer("true_token_id", least=0)]
        if scores.get("false_token_id") is not None:
            found.append(scores.integer("false_token_id", least=0))
    else:
        found = [evidence.tokens.require(word) for word in words]
    return replace(score, positive_token=found[0], negative_token=found[1] if len(found) > 1 else None)


def _listwise(evidence: Evidence, contract: Contract) -> Contract:
    """jina-reranker-v3: the states at the markers of documents and query, projected and compared."""
    shape = model_shape(evidence.folder, "projector.2.weight")
    if shape is None or len(shape) != 2:
        evidence.folder.reject("tensor 'projector.2.weight' is missing: without the projector nothing can be scored")
    markers = evidence.tokens.require("<|embed_token|>"), evidence.tokens.require("<|rerank_token|>")
    # Where documents need several prompts, the query's state is a weighted mean of what each prompt gave it.
    late = LateContract(dimensions=shape[0], kept=markers, is_normalized=False)
    score = ScoreContract(ScoreKind.LISTWISE, Activation.IDENTITY)
    return replace(contract, pooling=Pooling.LAST, outputs=(Output.TOKENS,), late=late, score=score)


RERANKERS = (
    Family(
        "jina-reranker-v3",
        models="jinaai/jina-reranker-v3",
        types=("qwen3",),
        marks=lambda evidence: evidence.is_class("JinaForRanking"),
        pooling=Pooling.LAST,
        code=("JinaForRanking",),
        complete=_listwise,
    ),
    Family(
        "qwen3-reranker",
        models="Qwen/Qwen3-Reranker-{0.6B,4B,8B}, as published or as a sequence classifier",
        types=("qwen3",),
        named=r"qwen3-reranker-[\d.]+b(-seq-?cls)?",
        marks=_is_qwen3_reranker,
        pooling=Pooling.LAST,
        max_tokens=32768,
        complete=_judge,
    ),
    Family(
        "zerank",
        models="zeroentropy/zerank-2, both as a language model and as a sequence classifier",
        types=("qwen3",),
        named=r"zerank-[12](-small)?(-reranker)?",
        marks=_is_zerank,
        pooling=Pooling.LAST,
        max_tokens=8192,
        complete=_zerank,
    ),
    Family(
        "decoder reranker",
        models="other rerankers on decoders",
        types=("qwen3", "qwen2", "mistral", "eurobert", "gemma3_text"),
        marks=lambda evidence: _is_classifier(evidence) or evidence.modules.scores is not None,
        refusal="how it reads a query with a document is not known; Qwen3-Reranker and zerank-2 are recognised by name",
    ),
    Family(
        "cross-encoder",
        models="BAAI/bge-reranker-{base,large,v2-m3}, cross-encoder/ms-marco-*, granite-embedding-reranker-english-r2, "
        "gte-{reranker-modernbert-base,multilingual-reranker-base}",
        types=ENCODERS,
        marks=_is_classifier,
        pooling=Pooling.CLS,
        complete=_pair,
    ),
)
