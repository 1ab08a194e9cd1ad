"""What a published ModernBERT directory holds: config.json's keys, the tensors' names, the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from model_families.family import Size
from model_families.files import write_tokenizer
from model_families.samples import WORDS
from model_families.weights import Draw, Plan, linear, scale

WINDOW = 32  # tokens in all of the tiny models' sliding layers, half of them on each side; the real ones have 128


@dataclass(frozen=True)
class Published:
    """What differs between the published models, and between the two sizes they are built in."""

    layers: int = 22
    hidden: int = 768
    heads: int = 12
    inner: int = 1152
    vocabulary: int = 50368
    dtype: torch.dtype = torch.bfloat16
    global_theta: float = 160000.0
    local_theta: float = 10000.0
    window: int = 128
    activation: str = "gelu"
    classifier_pooling: str = "mean"  # of the pre-training's classifier: an embedder pools as 1_Pooling says
    max_tokens: int = 8192
    has_rope_parameters: bool = False  # transformers 5's keys: layer_types and rope_parameters
    first: str = "[CLS]"
    last: str | None = "[SEP]"
    pad: str = "[PAD]"
    prompts: dict[str, str] | None = None
    peak: float = 1.25  # gain of queries and keys, see weights.linear
    branch: float = 0.8  # what a block adds to the residual, against its inputs' unit
    tiny_hidden: int = 64

    def at(self, size: Size) -> Published:
        """The same model, small enough for tests, and sharper: attention far from uniform, blocks that change much.

        Many such layers in a row would be chaos, in which bfloat16 says nothing about who computes it.
        """
        if size == "full":
            return self
        return replace(
            self, layers=4 if self.layers > 12 else 3, hidden=self.tiny_hidden, heads=4, inner=96, window=WINDOW,
            max_tokens=1024, peak=2.0, branch=2.0,
        )  # fmt: skip


def weight_plan(shape: Published, vocabulary: int) -> Plan:
    """Every tensor of a ModernBertModel. Layer 0 has no attn_norm: the embeddings' norm stands there."""
    hidden, inner = shape.hidden, shape.inner
    plan: Plan = {
        "embeddings.tok_embeddings.weight": Draw((vocabulary, hidden), 1.0),
        "embeddings.norm.weight": scale(hidden),
        "final_norm.weight": scale(hidden),
    }
    for i in range(shape.layers):
        layer = f"layers.{i}"
        plan[f"{layer}.attn.Wqkv.weight"] = linear(3 * hidden, hidden, gain=shape.peak)
        plan[f"{layer}.attn.Wo.weight"] = linear(hidden, hidden, gain=shape.branch / shape.peak)
        plan[f"{layer}.mlp.Wi.weight"] = linear(2 * inner, hidden)
        plan[f"{layer}.mlp.Wo.weight"] = linear(hidden, inner, gain=shape.branch)
        plan[f"{layer}.mlp_norm.weight"] = scale(hidden)
        if i:
            plan[f"{layer}.attn_norm.weight"] = scale(hidden)
    return plan


def config_of(shape: Published, tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    """config.json with the keys of the published ones."""
    first, pad = (tokenizer.token_to_id(name) for name in (shape.first, shape.pad))
    last = tokenizer.token_to_id(shape.last) if shape.last else first
    config: dict[str, Any] = {
        "architectures": ["ModernBertModel"], "model_type": "modernbert",
        "vocab_size": vocabulary, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "intermediate_size": shape.inner, "hidden_activation": shape.activation,
        "max_position_embeddings": shape.max_tokens, "local_attention": shape.window,
        "norm_eps": 1e-05, "layer_norm_eps": 1e-05, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0,
        "bos_token_id": first, "cls_token_id": first, "eos_token_id": last, "sep_token_id": last, "pad_token_id": pad,
        "classifier_pooling": shape.classifier_pooling, "classifier_activation": "gelu", "classifier_bias": False,
        "classifier_dropout": 0.0, "decoder_bias": True, "position_embedding_type": "absolute",
        "initializer_range": 0.02, "initializer_cutoff_factor": 2.0, "gradient_checkpointing": False,
        "deterministic_flash_attn": False, "sparse_prediction": False, "sparse_pred_ignore_index": -100,
    }  # fmt: skip
    name = str(shape.dtype).removeprefix("torch.")
    if not shape.has_rope_parameters:
        return config | {
            "global_attn_every_n_layers": 3, "global_rope_theta": shape.global_theta,
            "local_rope_theta": shape.local_theta, "torch_dtype": name, "transformers_version": "4.49.0",
        }  # fmt: skip
    kinds = ["sliding_attention" if i % 3 else "full_attention" for i in range(shape.layers)]
    rope = {
        "full_attention": {"rope_theta": shape.global_theta, "rope_type": "default"},
        "sliding_attention": {"rope_theta": shape.local_theta, "rope_type": "default"},
    }
    return config | {"layer_types": kinds, "rope_parameters": rope, "dtype": name, "transformers_version": "5.3.0"}


def vocabulary_of(shape: Published, tokenizer: Tokenizer, size: Size) -> int:
    """Rows of the embedding: the real number of them, or the tokenizer's tokens and a few that no text has."""
    return shape.vocabulary if size == "full" else -(-tokenizer.get_vocab_size() // 64) * 64


def write_text_files(
    folder: Path, shape: Published, more: tuple[AddedToken, ...] = (), pad: str | None = None
) -> Tokenizer:
    """The tokenizer and its files; ``more`` tokens have the highest ids."""
    specials = [shape.first, *([shape.last] if shape.last else []), shape.pad]
    tokenizer = byte_level_bpe(
        [
            *(AddedToken(" " * run, normalized=True, special=False) for run in (4, 3, 2)),
            *(AddedToken(name, normalized=False, special=True) for name in ("[UNK]", *specials)),
            AddedToken("[MASK]", lstrip=True, normalized=False, special=True),
            *more,
        ],
        normalizer=normalizers.NFC(),
    )
    frame(tokenizer, shape.first, shape.last)
    names = {
        "cls_token": shape.first, "sep_token": shape.last or shape.first, "pad_token": pad or shape.pad,
        "unk_token": "[UNK]", "mask_token": "[MASK]",
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_tokens,
        "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": True,
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, {**names, **settings}, *names)
    return tokenizer


def byte_level_bpe(added: Sequence[AddedToken], *, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A tokenizer whose added tokens have the ids behind its own, in their order; without a post-processor."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*WORDS, *(f" {word}" for word in WORDS)], trainer)
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def frame(tokenizer: Tokenizer, first: str, last: str | None) -> None:
    """The template that puts ``first`` before a text and ``last``, if any, behind it and behind each text of a pair."""
    behind = f" {last}:0" if last else ""
    behind_pair = f" {last}:1" if last else ""
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first}:0 $A:0{behind}",
        pair=f"{first}:0 $A:0{behind} $B:1{behind_pair}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last) if name],
    )
