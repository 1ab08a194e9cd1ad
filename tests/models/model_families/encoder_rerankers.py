"""Cross-encoders on BERT and XLM-RoBERTa: BGE's rerankers and those of sentence-transformers.

BGE (FlagEmbedding, inference/reranker/encoder_only/base.py): the tokenizer's pair ``<s> query </s></s> passage </s>``,
the raw logit of XLMRobertaForSequenceClassification's one label; the sigmoid where a score in [0, 1] is asked for. By
default a pair has 512 tokens at most, the query three quarters of them, and the passage is cut.

sentence-transformers: BERT's pair with token types, pooler with tanh and one linear. The activation is named in
config.json, by ``sbert_ce_default_activation_function`` until version 4 and by ``sentence_transformers.activation_fn``
since, and is the sigmoid where nothing is named; the ms-marco models name the identity.
"""

from __future__ import annotations

from dataclasses import replace

from model_families.bert_embedders import DEEP as BERT_DEEP
from model_families.bert_embedders import SMALL as BERT_SMALL
from model_families.encoder_layout import Layout
from model_families.encoder_mutants import PAIR_MUTANTS, ROBERTA_PAIR_MUTANTS, encoder_mutants
from model_families.encoder_reference import PairReference
from model_families.encoder_weights import bert_classifier_plan, roberta_classifier_plan
from model_families.family import Family
from model_families.xlm_roberta_embedders import DEEP, LARGE, SMALL, roberta_layout

LABELS: dict[str, object] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
IDENTITY = "torch.nn.modules.linear.Identity"


def _family(layout: Layout) -> Family:
    shape, own = layout.tiny, ROBERTA_PAIR_MUTANTS if layout.kind == "xlm-roberta" else PAIR_MUTANTS
    mutants = encoder_mutants(kind=layout.kind, layers=shape.layers, heads=shape.heads) | own
    return Family(
        layout.name, "reranker", layout.build, PairReference, mutants, outputs=("score",),
        has_full=layout.full is not None,
    )  # fmt: skip


BGE_BASE = roberta_layout(
    "bge-reranker-base", SMALL, architecture="XLMRobertaForSequenceClassification", plan=roberta_classifier_plan,
    keys=LABELS, has_position_ids=True, prefix="roberta.",
)  # fmt: skip
BGE_LARGE = replace(BGE_BASE, name="bge-reranker-large", tiny=DEEP)
BGE_M3 = replace(
    BGE_BASE, name="bge-reranker-v2-m3", tiny=replace(DEEP, layers=2), full=replace(LARGE, positions=8194),
    has_position_ids=False,
)  # fmt: skip
MS_MARCO = Layout(
    "ms-marco-MiniLM-L6-v2", BERT_SMALL, architecture="BertForSequenceClassification", plan=bert_classifier_plan,
    keys=LABELS | {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0.dev0"}},
)  # fmt: skip
MS_MARCO_OLD = replace(
    MS_MARCO, name="ms-marco-MiniLM-L-12-v2", tiny=BERT_DEEP, has_position_ids=True, prefix="bert.",
    keys=LABELS | {"sbert_ce_default_activation_function": IDENTITY, "gradient_checkpointing": False},
)  # fmt: skip
UNNAMED = replace(MS_MARCO, name="cross-encoder-of-one-label", keys=LABELS)

FAMILIES = tuple(_family(layout) for layout in (BGE_BASE, BGE_LARGE, BGE_M3, MS_MARCO, MS_MARCO_OLD, UNNAMED))
