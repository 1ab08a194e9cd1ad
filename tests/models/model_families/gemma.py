"""EmbeddingGemma: Gemma 3 that looks both ways, pooled by the mean, with two linears behind. As published.

The reference is sentence-transformers on transformers' Gemma3TextModel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from model_families.encoder_tokenizers import read_tokenizer
from model_families.family import Family, Role, Size, Vectors
from model_families.files import edit_json, write_json, write_tokenizer
from model_families.module_files import drop_token, edit_config, pool_otherwise, write_modules, write_prompts
from model_families.references import prompts_of
from model_families.tokenizers_bpe import MARK, marked_pieces
from model_families.weights import Draw, Plan, edit_weights, linear, write_weights

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
PROMPTS = {
    "query": "task: search result | query: ", "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ", "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ", "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ", "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ", "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ", "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """The sizes of the one published model, and of the tiny one.

    ``window`` is the published number: transformers halves it, so that a token sees window / 2 on each side.
    """

    layers: int = 24
    hidden: int = 768
    heads: int = 3
    head_size: int = 256
    scalar: int = 256
    inner: int = 1152
    between: int = 3072
    window: int = 512
    vocabulary: int = 262144
    peak: float = 0.25  # of the norms of queries and keys, on top of the one

    def at(self, size: Size) -> Published:
        """The same model, small enough for tests; its scalar is not its head size, so that neither stands for both."""
        if size == "full":
            return self
        return replace(
            self, layers=7, hidden=96, heads=3, head_size=32, scalar=24, inner=128, between=160, window=48,
            vocabulary=0, peak=0.7,
        )  # fmt: skip


def tokenizer_of() -> Tokenizer:
    """Gemma's: special tokens, pieces with SentencePiece's mark and 256 bytes to fall back on, ``<bos> text <eos>``."""
    pieces = marked_pieces()
    ordered = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    ordered += sorted(pieces.vocabulary, key=pieces.vocabulary.__getitem__)
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: identity for identity, piece in enumerate(ordered)}, merges=pieces.merges, unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def weight_plan(shape: Published, vocabulary: int) -> Plan:
    """Every tensor of a Gemma3TextModel, which has no prefix. Norms multiply by 1 + weight."""
    hidden, wide = shape.hidden, shape.heads * shape.head_size
    plan: Plan = {
        "embed_tokens.weight": Draw((vocabulary, hidden), 0.3 / hidden**0.5),
        "norm.weight": Draw((hidden,), 0.2, 0.3),
    }
    for i in range(shape.layers):
        layer = f"layers.{i}"
        plan[f"{layer}.self_attn.q_proj.weight"] = linear(wide, hidden)
        plan[f"{layer}.self_attn.k_proj.weight"] = linear(shape.head_size, hidden)
        plan[f"{layer}.self_attn.v_proj.weight"] = linear(shape.head_size, hidden)
        plan[f"{layer}.self_attn.o_proj.weight"] = linear(hidden, wide)
        # What makes attention peaked: (1 + peak) squared on scores of variance head_size / scalar.
        plan[f"{layer}.self_attn.q_norm.weight"] = Draw((shape.head_size,), 0.3, shape.peak)
        plan[f"{layer}.self_attn.k_norm.weight"] = Draw((shape.head_size,), 0.3, shape.peak)
        plan[f"{layer}.mlp.gate_proj.weight"] = linear(shape.inner, hidden)
        plan[f"{layer}.mlp.up_proj.weight"] = linear(shape.inner, hidden)
        plan[f"{layer}.mlp.down_proj.weight"] = linear(hidden, shape.inner)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            plan[f"{layer}.{name}_layernorm.weight"] = Draw((hidden,), 0.3, 0.0)
    return plan


def config_of(shape: Published, vocabulary: int) -> dict[str, Any]:
    """config.json with the keys of the published one."""
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(shape.layers)]
    return {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3TextModel"], "attention_bias": False,
        "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "dtype": "float32",
        "eos_token_id": 1, "final_logit_softcapping": None, "head_dim": shape.head_size,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.inner, "layer_types": kinds, "max_position_embeddings": 2048,
        "model_type": "gemma3_text", "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": shape.scalar, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": shape.window, "transformers_version": "4.57.0.dev0", "use_bidirectional_attention": True,
        "use_cache": True, "vocab_size": vocabulary,
    }  # fmt: skip


def _write_dense(folder: Path, path: str, out: int, inner: int, seed: int) -> None:
    write_json(
        folder / path / "config.json",
        {
            "in_features": inner, "out_features": out, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )  # fmt: skip
    write_weights(folder / path / "model.safetensors", {"linear.weight": linear(out, inner)}, seed, torch.float32)


def _build(folder: Path, size: Size, seed: int) -> None:
    shape = Published().at(size)
    tokenizer = tokenizer_of()
    settings: dict[str, object] = {
        "add_bos_token": True, "add_eos_token": True, "bos_token": "<bos>", "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>", "extra_special_tokens": {}, "mask_token": "<mask>", "model_max_length": 2048,
        "pad_token": "<pad>", "padding_side": "right", "sp_model_kwargs": None, "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False,
    }  # fmt: skip
    write_tokenizer(folder, tokenizer, settings, "bos_token", "eos_token", "mask_token", "pad_token", "unk_token")
    vocabulary = shape.vocabulary or -(-tokenizer.get_vocab_size() // 64) * 64
    write_json(folder / "config.json", config_of(shape, vocabulary))
    write_weights(folder / "model.safetensors", weight_plan(shape, vocabulary), seed, torch.float32)
    _write_dense(folder, "2_Dense", shape.between, shape.hidden, seed + 1)
    _write_dense(folder, "3_Dense", shape.hidden, shape.between, seed + 2)
    write_modules(folder, hidden=shape.hidden, mode="mean_tokens", max_tokens=2048, dense=("2_Dense", "3_Dense"))
    write_prompts(folder, PROMPTS)


class GemmaReference:
    """sentence-transformers in float64 with eager attention; token ids from tokenizer.json itself."""

    def __init__(self, folder: Path) -> None:
        settings = {"attn_implementation": "eager", "dtype": torch.float64}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=settings).double()
        self.tokenizer = read_tokenizer(folder)
        self.prompts = prompts_of(folder)

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """<bos> prompt text <eos>; the prompt of the role, else none."""
        ids: list[int] = self.tokenizer.encode((self.prompts[role] if role else "") + text).ids
        return ids

    def embed(self, texts: list[str], *, task: str | None = None, role: Role | None = None) -> Vectors:
        """[n, hidden] float64."""
        rows = []
        for text in texts:
            ids = torch.tensor([self.token_ids(text, role=role)])
            with torch.inference_mode():
                found = self.model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            rows.append(found["sentence_embedding"][0].numpy())
        return np.stack(rows)


def _edit(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder / "model.safetensors", edit)


def _swap(first: str, second: str) -> Callable[[Path], None]:
    """Two tensors of every layer change places."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if first in name]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return _edit(edit)


def _forget_one(tensors: dict[str, torch.Tensor]) -> None:
    """Norms multiply by the weight alone."""
    for name in [name for name in tensors if "norm" in name]:
        tensors[name] = tensors[name] - 1


def _forget_scale(tensors: dict[str, torch.Tensor]) -> None:
    embeddings = tensors["embed_tokens.weight"]
    tensors["embed_tokens.weight"] = embeddings / embeddings.shape[1] ** 0.5


def _scale_by_head_size(config: dict[str, Any]) -> None:
    config["query_pre_attn_scalar"] = config["head_dim"]


def _every_third_layer_is_full(config: dict[str, Any]) -> None:
    count = config["num_hidden_layers"]
    config["layer_types"] = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(count)]


def _change_window(tokens: int) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(sliding_window=config["sliding_window"] + tokens)


def _drop_dense(folder: Path) -> None:
    edit_json(folder / "modules.json", lambda rows: rows.__setitem__(slice(2, 4), []))


MUTANTS: dict[str, Callable[[Path], None]] = {
    "window plus 1": edit_config(_change_window(2)),
    "window minus 1": edit_config(_change_window(-2)),
    "window not halved": edit_config(lambda config: config.update(sliding_window=2 * config["sliding_window"])),
    "global theta": edit_config(lambda config: config.update(rope_theta=10000.0)),
    "local theta": edit_config(lambda config: config.update(rope_local_base_freq=1000000.0)),
    "layer pattern": edit_config(_every_third_layer_is_full),
    "causal": edit_config(lambda config: config.update(use_bidirectional_attention=False)),
    "scaled by the head size": edit_config(_scale_by_head_size),
    "activation": edit_config(lambda config: config.update(hidden_activation="silu")),
    "epsilon": edit_config(lambda config: config.update(rms_norm_eps=1.0)),
    "norms without one": _edit(_forget_one),
    "embedding without scale": _edit(_forget_scale),
    "swapped gate halves": _swap("gate_proj", "up_proj"),
    "swapped norms": _swap("post_attention_layernorm", "pre_feedforward_layernorm"),
    "linears behind the pooling forgotten": _drop_dense,
    "pooling": pool_otherwise("cls_token"),
    "dropped first token": drop_token(0),
    "dropped last token": drop_token(-1),
}

FAMILIES = (
    Family(
        "embeddinggemma-300m", "embedder", _build, GemmaReference, MUTANTS, roles=(None, "query", "document"),
        has_full=True,
    ),
)  # fmt: skip
