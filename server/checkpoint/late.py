"""Late interaction: what the layouts of ColBERT, PyLate and sentence-transformers say of a model's token vectors."""

from __future__ import annotations

import string
from dataclasses import dataclass, replace

from embedmux.server.checkpoint.architectures import ARCHITECTURES
from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.folder import Config
from embedmux.server.checkpoint.headers import model_shape
from embedmux.server.contract import Contract, LateContract, Prompts
from embedmux.server.records import Output, Pooling

PYLATE_KEYS = (
    "query_length", "document_length", "query_prefix", "document_prefix", "skiplist_words", "do_query_expansion",
    "attend_to_expansion_tokens", "query_expansion",
)  # fmt: skip
QUERY_TOKENS = 32  # where a layout does not say, as in Khattab and Zaharia 2020


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings that the layouts have in common. ``query_tokens`` None is a model that does not fill queries."""

    dimensions: int
    query_prefix: str
    document_prefix: str
    query_tokens: int | None
    document_tokens: int | None
    attends: bool
    skipped_words: tuple[str, ...]
    is_normalized: bool = True


def _is_stanford(evidence: Evidence) -> bool:
    return evidence.is_class("HF_ColBERT") or evidence.folder.has("artifact.metadata")


def _is_pylate(evidence: Evidence) -> bool:
    return evidence.settings.get("model_type") in ("ColBERT", "MultiVectorEncoder") or any(
        key in evidence.settings.values for key in PYLATE_KEYS
    )


def _stanford(evidence: Evidence, contract: Contract) -> Contract:
    """colbert-ir's own layout: settings in artifact.metadata, the projection among the model's tensors."""
    settings = evidence.folder.config("artifact.metadata", optional=True)
    settings.require("similarity", "cosine")
    shape = model_shape(evidence.folder, "linear.weight")
    if shape is None or len(shape) != 2:
        evidence.folder.reject("tensor 'linear.weight' is missing: without it there are no token vectors")
    layout = Layout(
        dimensions=shape[0],
        query_prefix=settings.string("query_token_id", "[unused0]"),
        document_prefix=settings.string("doc_token_id", "[unused1]"),
        query_tokens=settings.integer("query_maxlen", QUERY_TOKENS),
        document_tokens=settings.integer("doc_maxlen") if settings.get("doc_maxlen") is not None else None,
        attends=settings.flag("attend_to_mask_tokens", False),
        skipped_words=tuple(string.punctuation) if settings.flag("mask_punctuation", True) else (),
    )
    for key, marker in (("query_token_id", layout.query_prefix), ("doc_token_id", layout.document_prefix)):
        if _marker(evidence, marker) is None:
            settings.reject(key, f"a token of tokenizer.json, which {marker!r} is not; fetch artifact.metadata too")
    return _complete(evidence, contract, layout)


def _pylate(evidence: Evidence, contract: Contract) -> Contract:
    """PyLate's layout, and that of sentence-transformers' MultiVectorEncoder, which put it in other files."""
    dense = evidence.modules.dense
    if len(dense) != 1:
        evidence.folder.reject(f"modules.json: {len(dense)} Dense modules; token vectors have one projection")
    settings, sentences = evidence.settings, evidence.sentences
    expansion = _expansion(settings if "query_expansion" in settings.values else sentences)
    if expansion is None and settings.get("model_type") != "MultiVectorEncoder":
        fills = settings.flag("do_query_expansion", True)
        attends = settings.flag("attend_to_expansion_tokens", False)
        expansion = (settings.integer("query_length", QUERY_TOKENS) if fills else None, attends)
    query_tokens, attends = expansion or (None, False)
    length = "document_length"
    place = settings if settings.get(length) is not None else sentences
    layout = Layout(
        dimensions=dense[0].out_features,
        query_prefix=settings.string("query_prefix", ""),
        document_prefix=settings.string("document_prefix", ""),
        query_tokens=query_tokens,
        document_tokens=place.integer(length) if place.get(length) is not None else None,
        attends=attends,
        skipped_words=_skipped_words(evidence),
        # PyLate brings vectors to length one by itself; sentence-transformers has a module for it.
        is_normalized=evidence.modules.normalizes or settings.get("model_type") != "MultiVectorEncoder",
    )
    return _complete(evidence, contract, layout)


def _expansion(place: Config) -> tuple[int | None, bool] | None:
    """(tokens, whether they are attended to) of sentence-transformers' query_expansion; None where it says nothing."""
    if "query_expansion" not in place.values:
        return None
    if place.get("query_expansion") is None:
        return None, False
    expansion = place.section("query_expansion")
    expansion.require("strategy", "fixed")
    if expansion.get("token") is not None:
        expansion.reject("token", "null: the tokenizer's mask token")
    return expansion.integer("length"), expansion.flag("attend", False)


def _skipped_words(evidence: Evidence) -> tuple[str, ...]:
    masks = evidence.modules.masks
    if masks is not None:
        masks.require("skiplist_tasks", ["document"], "document")
        masks.require("keep_only_token_ids", [])
        return masks.strings("skiplist_words", ())
    return evidence.settings.strings("skiplist_words", tuple(string.punctuation))


def _require_reach(evidence: Evidence, layout: Layout) -> None:
    """Refuses mask tokens that see neither the query nor each other, as those behind a sliding layer's window."""
    if evidence.model_type == "modernbert" and layout.query_tokens is not None and not layout.attends:
        reach = evidence.config.integer("local_attention", 128) // 2
        if layout.query_tokens - 1 > reach:
            evidence.folder.reject(
                f"queries are filled up to {layout.query_tokens} tokens that attend to the query alone, and sliding "
                f"layers reach {reach} (config.json: local_attention): what the last of them see is not defined"
            )


def _complete(evidence: Evidence, contract: Contract, layout: Layout) -> Contract:
    _require_reach(evidence, layout)
    tokens = evidence.tokens
    query, document = _marker(evidence, layout.query_prefix), _marker(evidence, layout.document_prefix)
    late = LateContract(
        dimensions=layout.dimensions,
        query_prefix=layout.query_prefix if query is None else "",
        document_prefix=layout.document_prefix if document is None else "",
        query_marker=query,
        document_marker=document,
        query_tokens=layout.query_tokens,
        mask_token=_mask_token(evidence) if layout.query_tokens is not None else None,
        attends_to_expansion=layout.attends,
        is_normalized=layout.is_normalized,
        skipped=tuple(sorted({found for word in layout.skipped_words if (found := tokens.find(word)) is not None})),
    )
    # A prefix may be listed among the prompts as well; it stands once.
    prefixes = {"query": layout.query_prefix, "document": layout.document_prefix}
    own = {name: text.removeprefix(prefixes.get(name, "")) for name, text in contract.prompts.by_name.items()}
    # PyLate saves max_seq_length without the marker's place; document_length counts it.
    positions = ARCHITECTURES[evidence.model_type].positions(evidence.config)
    return replace(
        contract,
        outputs=(Output.TOKENS,),
        late=late,
        sizes=(layout.dimensions,),
        dense_modules=(),
        prompts=Prompts(own, contract.prompts.default_name),
        max_tokens=min(positions, layout.document_tokens or contract.max_tokens),
    )


def _marker(evidence: Evidence, prefix: str) -> int | None:
    """The id of a prefix that is one token, as it stands or without the space behind it."""
    return None if not prefix.strip() else evidence.tokens.find(prefix, prefix.split()[0])


def _mask_token(evidence: Evidence) -> int:
    named = evidence.tokenizer.get("mask_token")
    token = named.get("content") if isinstance(named, dict) else named
    if not isinstance(token, str):
        evidence.tokenizer.reject("mask_token", "a token: queries are filled up with it")
    return evidence.tokens.require(token)


LATE = (
    Family(
        "colbert",
        models="colbert-ir/colbertv2.0, answerdotai/answerai-colbert-small-v1, jinaai/jina-colbert-v2",
        types=("bert", "xlm-roberta", "modernbert", "xlm-roberta-flash"),
        marks=_is_stanford,
        pooling=Pooling.CLS,
        complete=_stanford,
    ),
    Family(
        "pylate",
        models="lightonai/GTE-ModernColBERT-v1, and what sentence-transformers' MultiVectorEncoder saves",
        types=("bert", "xlm-roberta", "roberta", "modernbert", "gte", "new", "eurobert", "qwen3"),
        marks=_is_pylate,
        pooling=Pooling.CLS,
        complete=_pylate,
    ),
)
