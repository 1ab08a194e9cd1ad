"""Checkpoints of the decoder shape: Qwen3, Qwen2, Mistral and EuroBERT, which differ in norms, biases and direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model_families.family import Size
from model_families.files import write_json, write_tokenizer
from model_families.tokenizers_bpe import byte_level
from model_families.weights import Draw, Plan, linear, scale, shift

VERSIONS = {"sentence_transformers": "5.1.2", "transformers": "4.57.0", "pytorch": "2.8.0"}
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_PLAIN = ("<think>", "</think>")  # added tokens of Qwen3 that are not special


@dataclass(frozen=True)
class Shape:
    """One decoder's sizes.

    ``sharpness`` is about the standard deviation of attention scores, ``branch`` the gain of what a block adds to the
    stream. Random layers amplify rounding, the more of them and the sharper the worse: 28 at a sharpness of 3 take
    bfloat16 to a cosine of 0.99 in any implementation, which says nothing of trained ones. So full sizes are gentler.
    """

    layers: int = 28
    hidden: int = 1024
    heads: int = 16
    kv_heads: int = 8
    head_size: int = 128
    inner: int = 3072
    vocabulary: int = 151936
    positions: int = 32768
    theta: float = 1e6
    eps: float = 1e-6
    has_head_norms: bool = True
    has_biases: bool = False
    sharpness: float = 3.0
    branch: float = 1.0

    def sized(self, size: Size, **tiny: Any) -> Shape:
        """The shape itself, or a tiny one of its kind: heads that do not add up to the hidden size, shared keys."""
        if size == "full":
            return replace(self, sharpness=1.5, branch=0.5)
        small = {"layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "head_size": 32, "inner": 96}
        return replace(self, **{**small, "vocabulary": 800, "positions": 1024, **tiny})


def config_of(shape: Shape, model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    """config.json with the keys and in the order of transformers 4, as all these repositories were published."""
    values = {
        "architectures": [architecture], "attention_bias": False, "attention_dropout": 0.0, "head_dim": shape.head_size,
        "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02, "intermediate_size": shape.inner,
        "max_position_embeddings": shape.positions, "model_type": model_type, "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers, "num_key_value_heads": shape.kv_heads, "rms_norm_eps": shape.eps,
        "rope_theta": int(shape.theta), "torch_dtype": "bfloat16", "transformers_version": "4.51.3",
        "vocab_size": shape.vocabulary,
    }  # fmt: skip
    return {**values, **more}


def qwen_config(shape: Shape, architecture: str, end: int, **more: Any) -> dict[str, Any]:
    """config.json of a Qwen3 model; ``end`` is the tokenizer's ``<|endoftext|>``."""
    common = {
        "bos_token_id": end, "eos_token_id": end, "max_window_layers": shape.layers, "rope_scaling": None,
        "sliding_window": None, "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False,
    }  # fmt: skip
    return config_of(shape, "qwen3", architecture, **{**common, **more})


def plan_of(shape: Shape) -> Plan:
    """Every tensor of the backbone by its bare name: no ``model.`` in front, no head."""
    gain = shape.sharpness**0.5
    wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    plan: Plan = {
        # Tied rows are the head's, too: logits stay of the order of 3 at every size.
        "embed_tokens.weight": Draw((shape.vocabulary, shape.hidden), 2.0 / shape.hidden**0.5),
        "norm.weight": scale(shape.hidden),
    }
    # Norms of the heads take the gain of the projections away, so they must bring it themselves.
    sharp = 1.0 if shape.has_head_norms else gain
    for i in range(shape.layers):
        layer, attention = f"layers.{i}", f"layers.{i}.self_attn"
        plan[f"{layer}.input_layernorm.weight"] = scale(shape.hidden)
        plan[f"{layer}.post_attention_layernorm.weight"] = scale(shape.hidden)
        plan[f"{attention}.q_proj.weight"] = linear(wide, shape.hidden, sharp)
        plan[f"{attention}.k_proj.weight"] = linear(narrow, shape.hidden, sharp)
        plan[f"{attention}.v_proj.weight"] = linear(narrow, shape.hidden)
        plan[f"{attention}.o_proj.weight"] = linear(shape.hidden, wide, shape.branch)
        plan[f"{layer}.mlp.gate_proj.weight"] = linear(shape.inner, shape.hidden)
        plan[f"{layer}.mlp.up_proj.weight"] = linear(shape.inner, shape.hidden)
        plan[f"{layer}.mlp.down_proj.weight"] = linear(shape.hidden, shape.inner, shape.branch)
        if shape.has_head_norms:
            plan[f"{attention}.q_norm.weight"] = scale(shape.head_size, gain)
            plan[f"{attention}.k_norm.weight"] = scale(shape.head_size, gain)
        if shape.has_biases:
            plan[f"{attention}.q_proj.bias"] = shift(wide)
            plan[f"{attention}.k_proj.bias"] = shift(narrow)
            plan[f"{attention}.v_proj.bias"] = shift(narrow)
    return plan


def end_of(tokenizer: Tokenizer) -> int:
    """The id of Qwen's ``<|endoftext|>``, 151643 in the real vocabulary."""
    return int(tokenizer.token_to_id("<|endoftext|>"))


def qwen_tokenizer(*, ending: str | None = None, more: Sequence[str] = ()) -> Tokenizer:
    """Qwen3's kind; ``ending`` is what the post-processor appends, ``more`` are further special tokens."""
    return byte_level([*QWEN_SPECIAL, *more], plain=QWEN_PLAIN, ending=ending)


def write_qwen_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer files of a Qwen repository."""
    config = {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": list(QWEN_SPECIAL[1:]),
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "errors": "replace",
        "model_max_length": 131072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, config, "additional_special_tokens", "eos_token", "pad_token")


def write_last_token_modules(folder: Path, hidden: int, max_tokens: int | None = None, **transformer: Any) -> None:
    """modules.json, 1_Pooling and sentence_bert_config.json of an embedder that pools the last token and normalises."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    entries[0] |= transformer
    write_json(folder / "modules.json", entries)
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            **{f"pooling_mode_{kind}": kind == "lasttoken" for kind in kinds},
            "include_prompt": True,
        },
    )
    if max_tokens is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})


def write_prompts(folder: Path, prompts: dict[str, str], default: str | None, **more: Any) -> None:
    """config_sentence_transformers.json."""
    values = {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine", **more}
    write_json(folder / "config_sentence_transformers.json", {"__version__": VERSIONS, **values})
