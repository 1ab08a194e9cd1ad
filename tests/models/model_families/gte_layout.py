"""What a directory of GTE v1.5 holds: config.json's keys, the tensors' names, the tokenizer.

transformers reads the published tensors and writes them back under the same names, so that a re-upload for it differs
in config.json only: static NTK scaling is there a linear one of the scaled base. Alibaba's rule for a factor f, applied
at every length: theta' = theta f, inverse frequencies theta'^(-2i / d) / f^(2 / d) (``NTKScalingRotaryEmbedding``).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GteConfig

from model_families.family import Size
from model_families.files import write_json, write_tokenizer
from model_families.tokenizers_pieces import unigram, word_pieces
from model_families.weights import Draw, Plan, linear, scale, shift

CODE = "Alibaba-NLP/new-impl--"


@dataclass(frozen=True)
class Published:
    """What differs between the published models, and between the two sizes they are built in."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 250048
    types: int = 1
    theta: float = 20000.0
    ntk: float | None = 8.0
    is_multilingual: bool = True
    dtype: torch.dtype = torch.float32
    prefix: str = ""
    has_classifier: bool = False  # a token classifier for sparse weights, which plays no part in the dense vector
    model_type: str = "new"
    prompts: dict[str, str] | None = None
    max_tokens: int = 8192
    peak: float = 1.25  # gain of queries and keys, see weights.linear
    branch: float = 0.7  # what a block adds to its input, against the unit of that
    tiny_hidden: int = 64

    def at(self, size: Size) -> Published:
        """The same model, small enough for tests, and sharper: see modernbert_layout."""
        if size == "full":
            return self
        return replace(
            self, layers=3, hidden=self.tiny_hidden, heads=4, inner=96, max_tokens=1024, peak=2.0, branch=2.0
        )


def weight_plan(shape: Published, vocabulary: int) -> Plan:
    """Every tensor of a NewModel. up_gate_proj has the rows of up before those of gate."""
    hidden, inner = shape.hidden, shape.inner
    plan: Plan = {"embeddings.word_embeddings.weight": Draw((vocabulary, hidden), 1.0)}
    if shape.types:
        plan["embeddings.token_type_embeddings.weight"] = Draw((shape.types, hidden), 0.5)
    norms = ["embeddings.LayerNorm"]
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        plan[f"{layer}.attention.qkv_proj.weight"] = linear(3 * hidden, hidden, gain=shape.peak)
        plan[f"{layer}.attention.qkv_proj.bias"] = shift(3 * hidden)
        plan[f"{layer}.attention.o_proj.weight"] = linear(hidden, hidden, gain=shape.branch / shape.peak)
        plan[f"{layer}.attention.o_proj.bias"] = shift(hidden)
        plan[f"{layer}.mlp.up_gate_proj.weight"] = linear(2 * inner, hidden)
        plan[f"{layer}.mlp.down_proj.weight"] = linear(hidden, inner, gain=shape.branch)
        plan[f"{layer}.mlp.down_proj.bias"] = shift(hidden)
        norms += [f"{layer}.attn_ln", f"{layer}.mlp_ln"]
    for norm in norms:
        plan[f"{norm}.weight"], plan[f"{norm}.bias"] = scale(hidden), shift(hidden)
    return plan


def config_of(shape: Published, vocabulary: int, architectures: list[str]) -> dict[str, Any]:
    """config.json with the keys of the published ones."""
    config: dict[str, Any] = {
        "architectures": architectures, "model_type": shape.model_type,
        "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.inner, "layer_norm_eps": 1e-12, "max_position_embeddings": shape.max_tokens,
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "pad_token_id": 1 if shape.is_multilingual else 0, "type_vocab_size": shape.types, "vocab_size": vocabulary,
        "torch_dtype": str(shape.dtype).removeprefix("torch."), "transformers_version": "4.39.1",
    }  # fmt: skip
    if shape.model_type == "gte" and shape.ntk:
        factor = shape.ntk ** (2 * shape.heads / shape.hidden)
        rope = {"rope_type": "linear", "rope_theta": shape.theta * shape.ntk, "factor": factor}
        return config | {"rope_parameters": rope, "transformers_version": "5.19.0"}
    names = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")
    classes = ("NewModel", "NewForMaskedLM", "NewForSequenceClassification")
    code = {"AutoConfig": f"{CODE}configuration.NewConfig"}
    code |= {name: f"{CODE}modeling.{kind}" for name, kind in zip(names, classes, strict=True)}
    config |= {
        "auto_map": code, "layer_norm_type": "layer_norm", "logn_attention_clip1": False,
        "logn_attention_scale": False, "pack_qkv": True, "position_embedding_type": "rope",
        "rope_theta": shape.theta, "rope_scaling": {"factor": shape.ntk, "type": "ntk"} if shape.ntk else None,
        "unpad_inputs": False, "use_memory_efficient_attention": False,
    }  # fmt: skip
    if shape.model_type == "gte":  # Snowflake's: its own copy of the code, switches as strings, and what it is cut to
        kinds = {"AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig"}
        kinds |= {"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"}
        config |= {
            "auto_map": kinds, "unpad_inputs": "true", "use_memory_efficient_attention": "true",
            "matryoshka_dimensions": [256],
        }  # fmt: skip
    return config


def write_text_files(folder: Path, shape: Published) -> int:
    """The tokenizer's files; the number of its ids."""
    if shape.is_multilingual:
        tokenizer = unigram()
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
        kind = "XLMRobertaTokenizer"
    else:
        tokenizer = word_pieces()
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
        kind = "BertTokenizer"
    settings = {"tokenizer_class": kind, "model_max_length": shape.max_tokens, "clean_up_tokenization_spaces": True}
    write_tokenizer(folder, tokenizer, {**names, **settings}, *names)
    return int(tokenizer.get_vocab_size())


def vocabulary_of(shape: Published, num_ids: int, size: Size) -> int:
    """Rows of the embedding, a multiple of 64: more than the tokenizer has ids, as published."""
    return shape.vocabulary if size == "full" else -(-num_ids // 64) * 64


def native_config(folder: Path) -> dict[str, Any]:
    """config.json as transformers' own Gte classes read it."""
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if "rope_parameters" in values:
        return values
    theta, scaling = values.pop("rope_theta"), values.pop("rope_scaling")
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        factor = scaling["factor"]
        size = values["hidden_size"] // values["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
    del values["auto_map"]
    return values | {"model_type": "gte", "rope_parameters": rope}


def load_native(folder: Path, kind: Any) -> Any:
    """transformers' model of a folder whose config it cannot read itself, in float64."""
    with tempfile.TemporaryDirectory() as copy:
        (Path(copy) / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
        write_json(Path(copy) / "config.json", native_config(folder))
        config = GteConfig.from_pretrained(copy)
        return kind.from_pretrained(copy, config=config, dtype=torch.float64, attn_implementation="eager").eval()
