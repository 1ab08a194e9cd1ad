"""The directories that BERT and XLM-RoBERTa models are published in, file by file.

Keys and values of the JSON files are those of the repositories on the hub; versions in them are examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from model_families.encoder_tokenizers import write_unigram, write_wordpiece
from model_families.encoder_weights import EncoderShape, append_tensor, encoder_plan, position_ids
from model_families.family import Size
from model_families.files import write_json
from model_families.weights import Plan, write_weights

VERSIONS = {"__version__": {"sentence_transformers": "2.2.2", "transformers": "4.28.1", "pytorch": "1.13.0+cu117"}}
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
TINY_TOKENS = 640


@dataclass(frozen=True)
class Layout:
    """What one repository is made of.

    ``spare_rows`` are rows of the word table that no token has. ``files`` writes what is special to the family, given
    the folder and the shape. ``keys`` are more of config.json.
    """

    name: str
    tiny: EncoderShape
    full: EncoderShape | None = None
    kind: Literal["bert", "xlm-roberta"] = "bert"
    architecture: str = "BertModel"
    tokenizer: Literal["wordpiece", "unigram"] = "wordpiece"
    plan: Callable[[EncoderShape], Plan] = encoder_plan
    prefix: str = ""  # before position_ids
    dtype: torch.dtype = torch.float32
    spare_rows: int = 0
    has_position_ids: bool = False
    has_baked_limits: bool = False
    keys: dict[str, object] = field(default_factory=dict)
    files: Callable[[Path, EncoderShape], None] | None = None

    def build(self, folder: Path, size: Size, seed: int) -> None:
        """Writes the directory; see Family."""
        if size == "full" and self.full is None:
            raise ValueError(f"{self.name} is built in size 'tiny' only")
        shape = self.full if size == "full" and self.full is not None else self.tiny
        if self.tokenizer == "wordpiece":
            rows = write_wordpiece(folder, max_tokens=self.max_tokens(shape), has_baked_limits=self.has_baked_limits)
        else:
            rows = write_unigram(folder, max_tokens=self.max_tokens(shape))
        shape = replace(shape, vocab=shape.vocab or rows + self.spare_rows)
        write_json(folder / "config.json", self.config(shape))
        weights = folder / "model.safetensors"
        write_weights(weights, self.plan(shape), seed, self.dtype)
        if self.has_position_ids:
            append_tensor(weights, f"{self.prefix}embeddings.position_ids", position_ids(shape))
        # A model card's results name the model, whatever the directory is called.
        card = f"---\nmodel-index:\n- name: {self.name}\n  results: []\n---\n\n# {self.name}\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
        if self.files is not None:
            self.files(folder, shape)

    def max_tokens(self, shape: EncoderShape) -> int:
        """XLM-R's first two positions are for padding."""
        return shape.positions - (2 if self.kind == "xlm-roberta" else 0)

    def config(self, shape: EncoderShape) -> dict[str, object]:
        """config.json."""
        is_bert = self.kind == "bert"
        ends = {} if is_bert else {"bos_token_id": 0, "eos_token_id": 2, "output_past": True}
        return {
            "architectures": [self.architecture],
            "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": None,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": shape.hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.inner,
            "layer_norm_eps": 1e-12 if is_bert else 1e-05,
            "max_position_embeddings": shape.positions,
            "model_type": self.kind,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "pad_token_id": 0 if is_bert else 1,
            "position_embedding_type": "absolute",
            "torch_dtype": str(self.dtype).removeprefix("torch."),
            "transformers_version": "4.29.0",
            "type_vocab_size": shape.types,
            "use_cache": True,
            "vocab_size": shape.vocab,
        } | ends | self.keys  # fmt: skip


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """modules.json of (path, class) in their order."""
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", entries)


def write_sentence_files(
    folder: Path,
    *,
    hidden: int,
    pooling: Literal["cls_token", "mean_tokens"],
    max_tokens: int | None,
    prompts: dict[str, str] | None = None,
    has_versions: bool = True,
    num_flags: int = 4,
    settings: dict[str, object] | None = None,
) -> None:
    """modules.json and what its three modules read.

    ``max_tokens`` None leaves sentence_bert_config.json out, ``has_versions`` False config_sentence_transformers.json;
    ``num_flags`` of the pooling's flags are written: four in old repositories, six in newer ones. ``settings`` are more
    of sentence_bert_config.json.
    """
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    write_modules(folder, *((path, f"sentence_transformers.models.{kind}") for path, kind in kinds))
    flags = {f"pooling_mode_{name}": name == pooling for name in POOLINGS[:num_flags]}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden} | flags)
    if max_tokens is not None:
        limits = {"max_seq_length": max_tokens, "do_lower_case": False} | (settings or {})
        write_json(folder / "sentence_bert_config.json", limits)
    if has_versions:
        more = {} if prompts is None else {"prompts": prompts, "default_prompt_name": None}
        write_json(folder / "config_sentence_transformers.json", VERSIONS | more)
