"""GTE v1.5 and multilingual as Alibaba published them, re-uploaded for transformers, and as Snowflake built on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GteModel

from model_families.family import Family, Role, Size, Vectors
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
from model_families.module_files import pool_otherwise, write_modules, write_prompts
from model_families.weights import linear, shift, write_weights

BASE = Published(vocabulary=30528, types=0, theta=500000.0, ntk=None, is_multilingual=False)
LARGE = Published(
    layers=24, hidden=1024, heads=16, inner=4096, vocabulary=30528, types=2, theta=160000.0, ntk=2.0,
    is_multilingual=False,
)  # fmt: skip
MULTILINGUAL = Published(prefix="new.", dtype=torch.float16, has_classifier=True, tiny_hidden=192)
NATIVE = replace(MULTILINGUAL, model_type="gte")
ARCTIC = Published(theta=160000.0, ntk=None, model_type="gte", prompts={"query": "query: "}, tiny_hidden=320)


def _build(published: Published) -> Callable[[Path, Size, int], None]:
    def build(folder: Path, size: Size, seed: int) -> None:
        shape = published.at(size)
        vocabulary = vocabulary_of(shape, write_text_files(folder, shape), size)
        classes = ["NewForTokenClassification"] if shape.has_classifier else []
        write_json(folder / "config.json", config_of(shape, vocabulary, ["NewModel", *classes]))
        plan = {f"{shape.prefix}{name}": recipe for name, recipe in weight_plan(shape, vocabulary).items()}
        if shape.has_classifier:
            plan |= {"classifier.weight": linear(1, shape.hidden), "classifier.bias": shift(1)}
        write_weights(folder / "model.safetensors", plan, seed, shape.dtype)
        write_modules(folder, hidden=shape.hidden, mode="cls_token", max_tokens=shape.max_tokens)
        if shape.prompts is not None:
            write_prompts(folder, shape.prompts)

    return build


class EmbedderReference:
    """transformers' GteModel in float64; prompts, pooling and norm as the sentence-transformers files say."""

    def __init__(self, folder: Path) -> None:
        self.model = load_native(folder, GteModel)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = folder / "config_sentence_transformers.json"
        self.prompts = json.loads(settings.read_text())["prompts"] if settings.exists() else {}
        self.pools_first = json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """The role's prompt, if the folder has one, and special tokens included."""
        ids: list[int] = self.tokenizer.encode(self.prompts.get(role, "") + text).ids
        return ids

    def embed(self, texts: list[str], *, task: str | None = None, role: Role | None = None) -> Vectors:
        """[n, hidden] float64."""
        return np.stack([self._embed(text, role) for text in texts])

    def _embed(self, text: str, role: Role | None) -> Vectors:
        with torch.inference_mode():
            states = self.model(torch.tensor([self.token_ids(text, role=role)])).last_hidden_state[0].numpy()
        pooled = states[0] if self.pools_first else states.mean(axis=0)
        return np.asarray(pooled / np.linalg.norm(pooled))


def _embedder(name: str, published: Published) -> Family:
    roles: tuple[Role | None, ...] = (None,) if published.prompts is None else ("query", "document")
    mutants = mutants_of(published) | {"pooling": pool_otherwise("mean_tokens")}
    return Family(name, "embedder", _build(published), EmbedderReference, mutants, roles=roles, has_full=True)


FAMILIES = (
    _embedder("gte-base-en-v1.5", BASE),
    _embedder("gte-large-en-v1.5", LARGE),
    _embedder("gte-multilingual-base", MULTILINGUAL),
    _embedder("transformers-gte-multilingual-base", NATIVE),
    _embedder("snowflake-arctic-embed-m-v2.0", ARCTIC),
)
