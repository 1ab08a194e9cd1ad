"""Jina ColBERT v2: Jina v3's backbone without task adapters, in Stanford's layout, with marker tokens of its own.

Where the contract comes from: vLLM's ColBERTJinaRobertaModel (backbone, ``linear.weight``), mteb (markers, an
expansion that is attended to; 559,366,144 parameters = 250,004 words, the backbone and the pooler), and fastembed
(markers 250002 and 250003 behind <s>, 32 tokens a query, every token of a query seen). The settings stand in
artifact.metadata, where Stanford's ColBERT reads them; its values here are these.
"""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model_families.colbert_reference import ARTIFACT, LateReference, LateSettings
from model_families.encoder_tokenizers import read_tokenizer, write_unigram
from model_families.family import Family, Size
from model_families.files import edit_json, write_json
from model_families.jina_v3 import MUTANTS, build_model, renamed
from model_families.jina_v3_layout import Published, base_plan, config_of
from model_families.references import read_json
from model_families.weights import linear, write_weights

MARKERS = {"query": "[QueryMarker]", "document": "[DocumentMarker]"}
DIMENSIONS = {"tiny": 32, "full": 128}


def _build(folder: Path, size: Size, seed: int) -> None:
    write_unigram(folder, max_tokens=8192)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(MARKERS.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = Published().at(size)
    vocabulary = 250004 if size == "full" else tokenizer.get_vocab_size()
    shape = replace(shape, vocabulary=vocabulary)
    adapters = {"lora_adaptations", "lora_alpha", "lora_rank", "lora_dropout_p", "lora_main_params_trainable"}
    left_out = adapters | {"task_instructions", "matryoshka_dimensions", "load_trained_adapters"}
    config = {key: value for key, value in config_of(shape, is_native=False).items() if key not in left_out}
    own = {"_name_or_path": "jinaai/jina-colbert-v2", "architectures": ["HF_ColBERT"]}
    write_json(folder / "config.json", config | own)
    plan = base_plan(shape) | {"linear.weight": linear(DIMENSIONS[size], shape.hidden)}
    write_weights(folder / "model.safetensors", plan, seed, torch.bfloat16)
    write_json(
        folder / ARTIFACT,
        {
            "query_token_id": MARKERS["query"], "doc_token_id": MARKERS["document"], "query_token": "[Q]",
            "doc_token": "[D]", "similarity": "cosine", "query_maxlen": 32, "attend_to_mask_tokens": True,
            "interaction": "colbert", "dim": DIMENSIONS[size], "doc_maxlen": 300, "mask_punctuation": True,
            "checkpoint": "jinaai/jina-colbert-v2",
        },
    )  # fmt: skip


class JinaLateReference(LateReference):
    """ColBERT's two sides on transformers' JinaEmbeddingsV3Model in float64."""

    def __init__(self, folder: Path) -> None:
        artifact = read_json(folder / ARTIFACT)
        self.settings = LateSettings(
            markers={"query": artifact["query_token_id"], "document": artifact["doc_token_id"]},
            lengths={"query": artifact["query_maxlen"], "document": artifact["doc_maxlen"]},
            attends=artifact["attend_to_mask_tokens"],
            skipped=tuple(string.punctuation) if artifact["mask_punctuation"] else (),
        )
        tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        self.projection = tensors.pop("linear.weight")
        self.model = build_model(read_json(folder / "config.json"), renamed(tensors))
        self.tokenizer = read_tokenizer(folder)
        self.mask = self.tokenizer.token_to_id("<mask>")
        # Marks that are no token by themselves keep their vectors, as sentence-transformers has it.
        found = {self.tokenizer.token_to_id(mark) for mark in self.settings.skipped}
        self.skipped = {identity for identity in found if identity is not None}


def _edit_artifact(**values: Any) -> Any:
    return lambda folder: edit_json(folder / ARTIFACT, lambda artifact: artifact.update(values))


OWN = {
    "markers exchanged": _edit_artifact(query_token_id=MARKERS["document"], doc_token_id=MARKERS["query"]),
    "expansion is not seen": _edit_artifact(attend_to_mask_tokens=False),
    "longer queries": _edit_artifact(query_maxlen=40),
    "punctuation has vectors": _edit_artifact(mask_punctuation=False),
}
KEPT = ("theta", "epsilon", "swapped key and value", "dropped first token", "dropped last token")

FAMILIES = (
    Family(
        "jina-colbert-v2", "embedder", _build, JinaLateReference, {name: MUTANTS[name] for name in KEPT} | OWN,
        roles=("query", "document"), outputs=("tokens",),
    ),
)  # fmt: skip
