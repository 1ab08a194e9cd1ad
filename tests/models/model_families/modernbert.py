"""ModernBERT embedders: GTE ModernBERT, and Granite embedding R2 in English and in many languages.

Values of the published configs: GTE has transformers' defaults; the full layers of Granite's English models have a RoPE
theta of 80000, its multilingual ones 150000 and, in sliding layers, 160000, and the smaller of these has silu.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from model_families.family import Family, Role, Size, Vectors
from model_families.files import edit_json, write_json
from model_families.modernbert_layout import Published, config_of, vocabulary_of, weight_plan, write_text_files
from model_families.modernbert_mutants import mutants_of
from model_families.module_files import pool_otherwise, write_modules, write_prompts
from model_families.weights import write_weights

ENGLISH = Published(global_theta=80000.0)
GTE = Published(dtype=torch.float16)
SMALL = Published(layers=12, hidden=384, inner=1536, global_theta=80000.0)
MULTILINGUAL_97M = Published(
    layers=12, hidden=384, inner=1536, vocabulary=180000, global_theta=150000.0, local_theta=160000.0,
    activation="silu", classifier_pooling="cls", max_tokens=32768, prompts={"query": "", "document": ""},
    first="<|cls|>", last="<|sep|>", pad="<|pad|>",
)  # fmt: skip
MULTILINGUAL_311M = Published(
    vocabulary=262152, global_theta=150000.0, local_theta=160000.0, classifier_pooling="cls", max_tokens=32768,
    has_rope_parameters=True, prompts={"query": "", "document": ""}, first="<bos>", last=None, pad="<pad>",
    tiny_hidden=256,
)  # fmt: skip


def _build(published: Published) -> Callable[[Path, Size, int], None]:
    def build(folder: Path, size: Size, seed: int) -> None:
        shape = published.at(size)
        tokenizer = write_text_files(folder, shape)
        vocabulary = vocabulary_of(shape, tokenizer, size)
        write_json(folder / "config.json", config_of(shape, tokenizer, vocabulary))
        write_weights(folder / "model.safetensors", weight_plan(shape, vocabulary), seed, shape.dtype)
        write_modules(folder, hidden=shape.hidden, mode="cls_token", max_tokens=shape.max_tokens)
        if shape.prompts is not None:
            write_prompts(folder, shape.prompts)
            # Granite's prompts are empty, so that leaving them out of the pooling leaves nothing out.
            edit_json(folder / "1_Pooling" / "config.json", lambda values: values.update(include_prompt=False))

    return build


class EmbedderReference:
    """sentence-transformers on transformers' ModernBertModel, in float64."""

    def __init__(self, folder: Path) -> None:
        settings = {"attn_implementation": "eager", "dtype": torch.float64}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=settings)

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """Special tokens included; these models have no prompts."""
        ids: list[int] = self.model.tokenizer(text)["input_ids"]
        return ids

    def embed(self, texts: list[str], *, task: str | None = None, role: Role | None = None) -> Vectors:
        """[n, hidden] float64."""
        return np.stack([self.model.encode(text, show_progress_bar=False) for text in texts])


def _embedder(name: str, published: Published) -> Family:
    mutants = mutants_of(published) | {"pooling": pool_otherwise("mean_tokens")}
    return Family(name, "embedder", _build(published), EmbedderReference, mutants, has_full=True)


FAMILIES = (
    _embedder("gte-modernbert-base", GTE),
    _embedder("granite-embedding-english-r2", ENGLISH),
    _embedder("granite-embedding-small-english-r2", SMALL),
    _embedder("granite-embedding-97m-multilingual-r2", MULTILINGUAL_97M),
    _embedder("granite-embedding-311m-multilingual-r2", MULTILINGUAL_311M),
)
