"""Late interaction as PyLate saves it, on ModernBERT: a projection of every token to 128 values.

What PyLate does with a text (its ``ColBERT.preprocess`` and ``encode``): the token of "[Q] " or "[D] " goes behind the
first token. Queries are cut and filled up with the mask token to 32 tokens; nothing sees those, and all 32 have a
vector. Documents are cut to 300 tokens; single punctuation marks lose their vector.
"""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from tokenizers import AddedToken, Tokenizer

from model_families.family import Family, Role, Size, Vectors
from model_families.files import edit_json, write_json
from model_families.modernbert_layout import Published, config_of, vocabulary_of, weight_plan, write_text_files
from model_families.modernbert_mutants import mutants_of
from model_families.weights import linear, write_weights

DIMENSIONS = 128
QUERY_LENGTH, DOCUMENT_LENGTH = 32, 300
PREFIXES: dict[Role, str] = {"query": "[Q] ", "document": "[D] "}
PUBLISHED = Published(vocabulary=50370, dtype=torch.float32)


def _build(folder: Path, size: Size, seed: int) -> None:
    # A window of 64: every mask token of a query sees the query, as with the real model's 128.
    shape = PUBLISHED if size == "full" else replace(PUBLISHED.at("tiny"), window=64)
    # PyLate adds plain tokens, their trailing space included, and makes the mask token the tokenizer's padding.
    prefixes = tuple(AddedToken(prefix, normalized=True, special=False) for prefix in PREFIXES.values())
    tokenizer = write_text_files(folder, shape, more=prefixes, pad="[MASK]")
    vocabulary = vocabulary_of(shape, tokenizer, size)
    write_json(folder / "config.json", config_of(shape, tokenizer, vocabulary))
    write_weights(folder / "model.safetensors", weight_plan(shape, vocabulary), seed, shape.dtype)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": DOCUMENT_LENGTH - 1, "do_lower_case": False})
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "4.0.2", "transformers": "4.48.2", "pytorch": "2.5.1+cu124"},
            "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
            "query_prefix": PREFIXES["query"], "document_prefix": PREFIXES["document"],
            "query_length": QUERY_LENGTH, "document_length": DOCUMENT_LENGTH,
            "attend_to_expansion_tokens": False, "skiplist_words": list(string.punctuation),
        },
    )  # fmt: skip
    dense = {
        "in_features": shape.hidden, "out_features": DIMENSIONS, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }  # fmt: skip
    write_json(folder / "1_Dense" / "config.json", dense)
    plan = {"linear.weight": linear(DIMENSIONS, shape.hidden)}
    write_weights(folder / "1_Dense" / "model.safetensors", plan, seed, shape.dtype)


class LateReference:
    """sentence-transformers' MultiVectorEncoder, in float64; the ids by PyLate's own steps."""

    def __init__(self, folder: Path) -> None:
        settings = {"attn_implementation": "eager", "dtype": torch.float64}
        self.model = MultiVectorEncoder(str(folder), device="cpu", model_kwargs=settings)
        self.model.to(torch.float64)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.settings = json.loads((folder / "config_sentence_transformers.json").read_text())

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """The prefix's token behind the first; a query's mask tokens included."""
        length = self.settings[f"{role}_length"]
        self.tokenizer.enable_truncation(length - 1)
        first, *rest = self.tokenizer.encode(text).ids
        ids = [first, self.tokenizer.token_to_id(self.settings[f"{role}_prefix"]), *rest]
        mask = self.tokenizer.token_to_id("[MASK]")
        return [*ids, *([mask] * (length - len(ids)) if role == "query" else [])]

    def tokens(self, text: str, role: Role) -> Vectors:
        """[tokens with a vector, 128] float64, each normalised."""
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        return np.asarray(encode(text, show_progress_bar=False))


def _edit_settings(**values: Any) -> Any:
    return lambda folder: edit_json(
        folder / "config_sentence_transformers.json", lambda settings: settings.update(values)
    )


MUTANTS = {
    **{name: edit for name, edit in mutants_of(PUBLISHED).items() if not name.startswith("dropped")},
    "prefixes exchanged": _edit_settings(query_prefix=PREFIXES["document"], document_prefix=PREFIXES["query"]),
    "mask tokens are seen": _edit_settings(attend_to_expansion_tokens=True),
    "punctuation has vectors": _edit_settings(skiplist_words=[]),
    "shorter queries": _edit_settings(query_length=24),
}
FAMILIES = (
    Family(
        "gte-moderncolbert-v1", "embedder", _build, LateReference, MUTANTS,
        roles=("query", "document"), outputs=("tokens",), has_full=True,
    ),
)  # fmt: skip
