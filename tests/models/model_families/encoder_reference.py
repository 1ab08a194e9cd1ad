"""transformers' BERT and XLM-RoBERTa, one text at a time, with sentence-transformers' pooling stated in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from model_families.encoder_tokenizers import read_tokenizer
from model_families.family import Role, Vectors

DOUBLE_LIMIT = 2_000_000  # weights; above it float64 would take too long


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def open_encoder(folder: Path, *, has_classifier: bool = False) -> Any:
    """The model of a folder with eager attention, in float64 if it is small and else in float32."""
    config = AutoConfig.from_pretrained(folder)
    num_weights = config.vocab_size * config.hidden_size + 12 * config.num_hidden_layers * config.hidden_size**2
    dtype = torch.float64 if num_weights < DOUBLE_LIMIT else torch.float32
    settings = {"dtype": dtype, "attn_implementation": "eager"}
    if has_classifier:
        return AutoModelForSequenceClassification.from_pretrained(folder, **settings).eval()
    return AutoModel.from_pretrained(folder, add_pooling_layer=False, **settings).eval()


class EncoderReference:
    """A dense embedder. ``prompts`` are the prefixes by role where the folder names none itself."""

    def __init__(self, folder: Path, prompts: dict[Role, str] | None = None) -> None:
        own = read_json(folder / "config_sentence_transformers.json").get("prompts")
        self.prompts: dict[str, str] = dict(own or prompts or {})
        self.tokenizer = read_tokenizer(folder)
        self.model = open_encoder(folder)
        flags = read_json(folder / "1_Pooling" / "config.json")
        self.pooling = next(name.removeprefix("pooling_mode_") for name, on in flags.items() if on is True)

    def prompt(self, role: Role | None, instruction: str | None = None) -> str:
        """The prefix of a role."""
        return self.prompts.get(role or "", "")

    def token_ids(
        self, text: str, *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> list[int]:
        """What tokenizer.json makes of prompt and text."""
        ids: list[int] = self.tokenizer.encode(self.prompt(role, instruction) + text).ids
        return ids

    def states(self, ids: list[int], seen: list[int] | None = None) -> torch.Tensor:
        """Token states [tokens, hidden]; ``seen`` says which tokens the others may attend to, all by default."""
        mask = torch.tensor([seen if seen is not None else [1] * len(ids)])
        with torch.inference_mode():
            states: torch.Tensor = self.model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
        return states

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """The vector of token states, by the folder's pooling."""
        if self.pooling == "mean_tokens":
            return states.mean(0)
        if self.pooling == "cls_token":
            return states[0]
        raise ValueError(f"pooling {self.pooling} is none of this family's")

    def embed(
        self,
        texts: list[str],
        *,
        task: str | None = None,
        role: Role | None = None,
        instruction: str | None = None,
    ) -> Vectors:
        """[n, hidden], L2-normalised."""
        read = (self.token_ids(text, role=role, instruction=instruction) for text in texts)
        return np.stack([unit(self.pool(self.states(ids))) for ids in read])


class InstructReference(EncoderReference):
    """A dense embedder whose queries follow a template of one instruction."""

    TEMPLATE = "Instruct: {instruction}\nQuery: "
    DEFAULT = "Given a web search query, retrieve relevant passages that answer the query"

    def prompt(self, role: Role | None, instruction: str | None = None) -> str:
        """The template of queries; documents have none."""
        return self.TEMPLATE.format(instruction=instruction or self.DEFAULT) if role == "query" else ""


class PairReference:
    """A cross-encoder: the tokenizer's own pair, types included, and the logit of its one label."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = read_tokenizer(folder)
        self.model = open_encoder(folder, has_classifier=True)

    def pair_ids(self, query: str, document: str) -> list[int]:
        """Both texts with the special tokens around and between them."""
        ids: list[int] = self.tokenizer.encode(query, document).ids
        return ids

    def pair_types(self, query: str, document: str) -> list[int]:
        """The type of each token: 0, or 1 for BERT's document and its [SEP]."""
        types: list[int] = self.tokenizer.encode(query, document).type_ids
        return types

    def score(self, query: str, documents: list[str]) -> Vectors:
        """[n] raw logits."""
        return np.array([self._logit(query, document) for document in documents])

    def _logit(self, query: str, document: str) -> float:
        inputs = {"input_ids": torch.tensor([self.pair_ids(query, document)])}
        if self.model.config.type_vocab_size > 1:
            inputs["token_type_ids"] = torch.tensor([self.pair_types(query, document)])
        with torch.inference_mode():
            return float(self.model(**inputs).logits[0, 0])


def unit(vector: torch.Tensor) -> Vectors:
    """Divided by its length along the last dimension."""
    normed: Vectors = torch.nn.functional.normalize(vector, dim=-1).numpy()
    return normed
