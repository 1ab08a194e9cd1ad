"""GTE's multilingual cross-encoder: BERT's pooler on the first token, then one raw logit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GteForSequenceClassification

from model_families.family import Family, Size, Vectors
from model_families.files import write_json
from model_families.gte_layout import (
    Published,
    config_of,
    load_native,
    vocabulary_of,
    weight_plan,
    write_text_files,
)
from model_families.gte_mutants import mutants_of
from model_families.weights import linear, shift, write_weights

PUBLISHED = Published(prefix="new.", dtype=torch.float16)


def _build(folder: Path, size: Size, seed: int) -> None:
    shape = PUBLISHED.at(size)
    vocabulary = vocabulary_of(shape, write_text_files(folder, shape), size)
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    write_json(folder / "config.json", config_of(shape, vocabulary, ["NewForSequenceClassification"]) | labels)
    plan = {f"{shape.prefix}{name}": recipe for name, recipe in weight_plan(shape, vocabulary).items()} | {
        "new.pooler.dense.weight": linear(shape.hidden, shape.hidden),
        "new.pooler.dense.bias": shift(shape.hidden),
        "classifier.weight": linear(1, shape.hidden, gain=2.0),
        "classifier.bias": shift(1),
    }
    write_weights(folder / "model.safetensors", plan, seed, shape.dtype)


class RerankerReference:
    """transformers' GteForSequenceClassification on the tokenizer's own pair, in float64."""

    def __init__(self, folder: Path) -> None:
        self.model = load_native(folder, GteForSequenceClassification)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def pair_ids(self, query: str, document: str) -> list[int]:
        """<s> query </s></s> document </s>."""
        ids: list[int] = self.tokenizer.encode(query, document).ids
        return ids

    def score(self, query: str, documents: list[str]) -> Vectors:
        """[n] float64 raw logits."""
        with torch.inference_mode():
            logits = [self.model(torch.tensor([self.pair_ids(query, text)])).logits for text in documents]
        return np.array([float(logit) for logit in logits])


FAMILIES = (
    Family(
        "gte-multilingual-reranker-base", "reranker", _build, RerankerReference, mutants_of(PUBLISHED),
        outputs=("score",), has_full=True,
    ),
)  # fmt: skip
