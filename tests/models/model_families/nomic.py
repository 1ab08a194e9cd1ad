"""Nomic BERT: nomic-embed-text v1 and v1.5, and Snowflake's arctic-embed-m-long, which is of the same making.

Names and config keys as published: v1.5 has the keys of its own code and those of transformers 5, the others the former
only. The reference is transformers' NomicBertModel, told in its own words what the older keys say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import NomicBertConfig, NomicBertModel

from model_families.encoder_tokenizers import read_tokenizer, write_wordpiece
from model_families.family import Family, Role, Size, Vectors
from model_families.files import write_json
from model_families.module_files import drop_token, edit_config, pool_otherwise, write_modules, write_prompts
from model_families.references import flagged_mode, pooled, prompts_of, read_json
from model_families.weights import Draw, Plan, edit_weights, linear, scale, shift, write_weights

PROMPTS = {
    "query": "search_query: ", "document": "search_document: ", "classification": "classification: ",
    "clustering": "clustering: ",
}  # fmt: skip
ARCTIC_PROMPTS = {"query": "Represent this sentence for searching relevant passages: "}


@dataclass(frozen=True)
class Published:
    """What differs between the published models, and between the two sizes they are built in."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 30528
    max_tokens: int = 8192
    mode: str = "mean_tokens"
    has_new_keys: bool = False
    prompts: dict[str, str] | None = None
    peak: float = 1.25  # gain of queries and keys, see weights.linear
    branch: float = 0.5  # what a block adds to the residual, against its inputs' unit

    def at(self, size: Size) -> Published:
        """The same model, small enough for tests."""
        if size == "full":
            return self
        return replace(self, layers=3, hidden=64, heads=4, inner=256, vocabulary=0, peak=1.8, branch=1.0)


V1 = Published()
V15 = Published(has_new_keys=True)
ARCTIC = Published(mode="cls_token", prompts=ARCTIC_PROMPTS)


def weight_plan(shape: Published, vocabulary: int) -> Plan:
    """Every tensor of the published files: no prefix, one Wqkv a layer, no bias but the norms'."""
    hidden = shape.hidden
    plan: Plan = {
        # As small as the root of an epsilon of 1e-5, so that a wrong one is seen.
        "embeddings.word_embeddings.weight": Draw((vocabulary, hidden), 3e-3),
        "embeddings.token_type_embeddings.weight": Draw((2, hidden), 1.5e-3),
    }
    norms = ["emb_ln"]
    for i in range(shape.layers):
        layer = f"encoder.layers.{i}"
        plan[f"{layer}.attn.Wqkv.weight"] = linear(3 * hidden, hidden, gain=shape.peak)
        plan[f"{layer}.attn.out_proj.weight"] = linear(hidden, hidden, gain=shape.branch)
        plan[f"{layer}.mlp.fc11.weight"] = linear(shape.inner, hidden)
        plan[f"{layer}.mlp.fc12.weight"] = linear(shape.inner, hidden)
        plan[f"{layer}.mlp.fc2.weight"] = linear(hidden, shape.inner, gain=2.0 * shape.branch)
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    for norm in norms:
        plan |= {f"{norm}.weight": scale(hidden), f"{norm}.bias": shift(hidden)}
    return plan


def config_of(shape: Published, vocabulary: int) -> dict[str, Any]:
    """config.json with the keys of the published ones."""
    code = "nomic-ai/nomic-bert-2048"
    config: dict[str, Any] = {
        "activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
        "auto_map": {
            "AutoConfig": f"{code}--configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": f"{code}--modeling_hf_nomic_bert.NomicBertModel",
            "AutoModelForMaskedLM": f"{code}--modeling_hf_nomic_bert.NomicBertForPreTraining",
        },
        "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0, "eos_token_id": None,
        "fused_bias_fc": True, "fused_dropout_add_ln": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "model_type": "nomic_bert",
        "n_embd": shape.hidden, "n_head": shape.heads, "n_inner": shape.inner, "n_layer": shape.layers,
        "n_positions": shape.max_tokens, "pad_vocab_size_multiple": 64, "parallel_block": False,
        "parallel_block_tied_norm": False, "prenorm": False, "qkv_proj_bias": False, "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.0,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "torch_dtype": "float32", "transformers_version": "4.34.0", "type_vocab_size": 2, "use_cache": True,
        "use_flash_attn": True, "use_rms_norm": False, "use_xentropy": True, "vocab_size": vocabulary,
    }  # fmt: skip
    if shape.has_new_keys:
        config |= {
            "hidden_act": "silu", "hidden_size": shape.hidden, "intermediate_size": shape.inner,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 2048, "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers, "pad_token_id": 0,
            "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
        }  # fmt: skip
    return config


def _build(published: Published) -> Callable[[Path, Size, int], None]:
    def build(folder: Path, size: Size, seed: int) -> None:
        shape = published.at(size)
        ids = write_wordpiece(folder, max_tokens=shape.max_tokens)
        vocabulary = shape.vocabulary or -(-ids // 64) * 64
        write_json(folder / "config.json", config_of(shape, vocabulary))
        write_weights(folder / "model.safetensors", weight_plan(shape, vocabulary), seed, torch.float32)
        write_modules(folder, hidden=shape.hidden, mode=shape.mode, max_tokens=shape.max_tokens)
        if shape.prompts is not None:
            write_prompts(folder, shape.prompts)

    return build


class NomicReference:
    """transformers' NomicBertModel in float64, with the pooling of 1_Pooling."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")
        self.tokenizer = read_tokenizer(folder)
        self.mode = flagged_mode(folder)
        self.prompts = prompts_of(folder) or PROMPTS
        told = NomicBertConfig(
            vocab_size=config["vocab_size"], hidden_size=config["n_embd"], num_hidden_layers=config["n_layer"],
            num_attention_heads=config["n_head"], intermediate_size=config["n_inner"],
            layer_norm_eps=config["layer_norm_epsilon"], type_vocab_size=config["type_vocab_size"],
            max_position_embeddings=config["n_positions"], attn_implementation="eager",
            rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
        )  # fmt: skip
        self.model = NomicBertModel.from_pretrained(folder, config=told, dtype=torch.float64).eval()

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """[CLS] prompt text [SEP]; the prompt of the role, else of the task, else none."""
        ids: list[int] = self.tokenizer.encode(self.prompts.get(role or task or "", "") + text).ids
        return ids

    def embed(
        self,
        texts: list[str],
        *,
        task: str | None = None,
        role: Role | None = None,
        dimensions: int | None = None,
    ) -> Vectors:
        """[n, dimensions] float64; fewer than all after the card's layer_norm over all of them."""
        rows = []
        for text in texts:
            with torch.inference_mode():
                states = self.model(torch.tensor([self.token_ids(text, task=task, role=role)])).last_hidden_state[0]
                vector = pooled(states, self.mode)
                if dimensions is not None:
                    vector = torch.nn.functional.layer_norm(vector, vector.shape)[:dimensions]
                rows.append(torch.nn.functional.normalize(vector, dim=0).numpy())
        return np.stack(rows)


def _set_theta(config: dict[str, Any]) -> None:
    config["rotary_emb_base"] = 10000
    if "rope_parameters" in config:
        config["rope_parameters"]["rope_theta"] = 10000.0


def _set_eps(config: dict[str, Any]) -> None:
    config["layer_norm_epsilon"] = 1e-5
    if "layer_norm_eps" in config:
        config["layer_norm_eps"] = 1e-5


def _swap(first: str, second: str) -> Callable[[Path], None]:
    """Two tensors of every layer change places."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if first in name]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return lambda folder: edit_weights(folder / "model.safetensors", edit)


def _swap_key_and_value(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("Wqkv.weight")]:
        query, key, value = tensors[name].chunk(3)
        tensors[name] = torch.cat([query, value, key])


def _take_second_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embeddings.token_type_embeddings.weight"] = tensors["embeddings.token_type_embeddings.weight"].flip(0)


def _edit(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder / "model.safetensors", edit)


def _family(name: str, published: Published, tasks: tuple[str | None, ...] = (None,)) -> Family:
    mutants = {
        "theta": edit_config(_set_theta),
        "epsilon": edit_config(_set_eps),
        "swapped gate halves": _swap("mlp.fc11", "mlp.fc12"),
        "swapped norms": _swap("norm1", "norm2"),
        "swapped key and value": _edit(_swap_key_and_value),
        "second token type": _edit(_take_second_type),
        "pooling": pool_otherwise("mean_tokens" if published.mode == "cls_token" else "cls_token"),
        "dropped first token": drop_token(0),
        "dropped last token": drop_token(-1),
    }
    roles: tuple[Role | None, ...] = (None, "query", "document")
    return Family(name, "embedder", _build(published), NomicReference, mutants, tasks=tasks, roles=roles, has_full=True)


FAMILIES = (
    _family("nomic-embed-text-v1", V1),
    _family("nomic-embed-text-v1.5", V15),
    _family("snowflake-arctic-embed-m-long", ARCTIC),
)
