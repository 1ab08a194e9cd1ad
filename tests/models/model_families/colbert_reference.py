"""ColBERT's query and document sides, stated in plain torch on transformers' BertModel."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from model_families.encoder_reference import open_encoder, read_json, unit
from model_families.encoder_tokenizers import read_tokenizer
from model_families.family import Role, Vectors

ARTIFACT, SETTINGS = "artifact.metadata", "config_sentence_transformers.json"


@dataclass(frozen=True)
class LateSettings:
    """What the layouts have in common, by side where it depends on it."""

    markers: dict[str, str]
    lengths: dict[str, int]
    attends: bool
    skipped: tuple[str, ...]


class LateReference:
    """Token vectors of an encoder and a projection [dimensions, hidden]."""

    def __init__(self, encoder: Path, projection: torch.Tensor, settings: LateSettings) -> None:
        self.settings = settings
        self.tokenizer = read_tokenizer(encoder)
        self.model = open_encoder(encoder)
        self.projection = projection.to(self.model.dtype)
        self.mask = self.tokenizer.token_to_id("[MASK]")
        self.skipped = {self.tokenizer.token_to_id(word) for word in settings.skipped}

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """Special tokens, marker and a query's [MASK]s included; without a role a document."""
        side = role or "document"
        ids = self._own_ids(text, side)
        return ids + [self.mask] * (self.settings.lengths[side] - len(ids)) if side == "query" else ids

    def _own_ids(self, text: str, side: Role) -> list[int]:
        """Cut to the side's length, but not filled up."""
        length = self.settings.lengths[side]
        first, *rest = self.tokenizer.encode(text).ids
        if len(rest) > length - 2:  # [CLS] and the marker
            rest = [*rest[: length - 3], rest[-1]]
        return [first, self.tokenizer.token_to_id(self.settings.markers[side]), *rest]

    def tokens(self, text: str, role: Role) -> Vectors:
        """[tokens with a vector, dimensions], each normalised."""
        ids = self.token_ids(text, role=role)
        num_seen = len(ids) if self.settings.attends else len(self._own_ids(text, role))
        seen = [int(place < num_seen) for place in range(len(ids))]
        with torch.inference_mode():
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([seen])}
            states = self.model(**inputs).last_hidden_state[0]
        kept = [role == "query" or token not in self.skipped for token in ids]
        return unit(states[torch.tensor(kept)] @ self.projection.T)

    def late_score(self, query: str, document: str) -> float:
        """The sum over query tokens of their best match."""
        matches = self.tokens(query, "query") @ self.tokens(document, "document").T
        return float(np.sum(matches.max(-1)))


def read_stanford(folder: Path) -> LateReference:
    """HF_ColBERT with artifact.metadata."""
    artifact = read_json(folder / ARTIFACT)
    settings = LateSettings(
        markers={
            "query": artifact.get("query_token_id", "[unused0]"),
            "document": artifact.get("doc_token_id", "[unused1]"),
        },
        lengths={"query": artifact["query_maxlen"], "document": artifact["doc_maxlen"]},
        attends=artifact["attend_to_mask_tokens"],
        skipped=tuple(string.punctuation) if artifact["mask_punctuation"] else (),
    )
    return LateReference(folder, load_file(folder / "model.safetensors")["linear.weight"], settings)


def read_pylate(folder: Path) -> LateReference:
    """A BertModel at the root, 1_Dense, and the settings among sentence-transformers'."""
    values = read_json(folder / SETTINGS)
    settings = LateSettings(
        markers={side: values[f"{side}_prefix"] for side in ("query", "document")},
        lengths={side: values[f"{side}_length"] for side in ("query", "document")},
        attends=values["attend_to_expansion_tokens"],
        skipped=tuple(values["skiplist_words"]),
    )
    return LateReference(folder, load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"], settings)
