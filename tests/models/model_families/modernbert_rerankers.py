"""ModernBERT cross-encoders: a head on the first token (Granite) or on the mean of all (GTE), one raw logit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, ModernBertForSequenceClassification

from model_families.family import Family, Size, Vectors
from model_families.files import write_json
from model_families.modernbert_layout import Published, config_of, vocabulary_of, weight_plan, write_text_files
from model_families.modernbert_mutants import mutants_of
from model_families.module_files import edit_config
from model_families.weights import Plan, linear, scale, shift, write_weights

GRANITE = Published(global_theta=80000.0, classifier_pooling="cls")
GTE = Published(dtype=torch.float16, classifier_pooling="mean")


def _plan(shape: Published, vocabulary: int) -> Plan:
    backbone = {f"model.{name}": recipe for name, recipe in weight_plan(shape, vocabulary).items()}
    return backbone | {
        "head.dense.weight": linear(shape.hidden, shape.hidden),
        "head.norm.weight": scale(shape.hidden),
        "classifier.weight": linear(1, shape.hidden, gain=2.0),
        "classifier.bias": shift(1),
    }


def _build(published: Published) -> Callable[[Path, Size, int], None]:
    def build(folder: Path, size: Size, seed: int) -> None:
        shape = published.at(size)
        tokenizer = write_text_files(folder, shape)
        vocabulary = vocabulary_of(shape, tokenizer, size)
        config = config_of(shape, tokenizer, vocabulary) | {
            "architectures": ["ModernBertForSequenceClassification"],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
        write_json(folder / "config.json", config)
        write_weights(folder / "model.safetensors", _plan(shape, vocabulary), seed, shape.dtype)

    return build


class RerankerReference:
    """transformers' ModernBertForSequenceClassification on the tokenizer's own pair, in float64."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = ModernBertForSequenceClassification.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        ).eval()

    def pair_ids(self, query: str, document: str) -> list[int]:
        """[CLS] query [SEP] document [SEP]."""
        ids: list[int] = self.tokenizer(query, document)["input_ids"]
        return ids

    def score(self, query: str, documents: list[str]) -> Vectors:
        """[n] float64 raw logits."""
        with torch.inference_mode():
            logits = [self.model(torch.tensor([self.pair_ids(query, text)])).logits for text in documents]
        return np.array([float(logit) for logit in logits])


def _pool_otherwise(config: dict[str, Any]) -> None:
    config["classifier_pooling"] = "mean" if config["classifier_pooling"] == "cls" else "cls"


def _reranker(name: str, published: Published) -> Family:
    mutants = mutants_of(published) | {
        "pooling": edit_config(_pool_otherwise),
        "head's activation": edit_config(lambda config: config.update(classifier_activation="silu")),
    }
    return Family(name, "reranker", _build(published), RerankerReference, mutants, outputs=("score",), has_full=True)


FAMILIES = (
    _reranker("granite-embedding-reranker-english-r2", GRANITE),
    _reranker("gte-reranker-modernbert-base", GTE),
)
