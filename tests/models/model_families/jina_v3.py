"""Jina embeddings v3: what it must compute, in both layouts of jina_v3_layout.py.

The reference adds a task's update to the weights, as the original code does on every call, and runs transformers'
JinaEmbeddingsV3Model on the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

from model_families.encoder_tokenizers import read_tokenizer
from model_families.family import Family, Role, Size, Vectors
from model_families.files import edit_json
from model_families.jina_v3_layout import STACKED, TYPES, WORDS, build_native, build_stacked, folder_of
from model_families.module_files import drop_token, edit_config, pool_otherwise
from model_families.references import flagged_mode, pooled, read_json
from model_families.weights import edit_weights

ADAPTATIONS = {
    ("retrieval", "query"): "retrieval.query", ("retrieval", "document"): "retrieval.passage",
    ("clustering", None): "separation", ("classification", None): "classification",
    ("text-matching", None): "text-matching",
}  # fmt: skip
TASKS: tuple[str | None, ...] = (None, "retrieval", "text-matching", "classification", "clustering")


def adaptation_of(task: str | None, role: Role | None) -> str | None:
    """The model's own name for a task; the role matters for retrieval only."""
    return ADAPTATIONS.get((task or "", role)) or ADAPTATIONS.get((task or "", None))


class JinaReference:
    """transformers' model in float64 with the weights of one task; None is the model without any update."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.tokenizer = read_tokenizer(folder)
        self.mode = flagged_mode(folder)
        self._held: tuple[str | None, JinaEmbeddingsV3Model] | None = None

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """<s> prompt text </s>; the prompt is the task's."""
        adaptation = adaptation_of(task, role)
        prompt = self.config["task_instructions"][adaptation] if adaptation else ""
        ids: list[int] = self.tokenizer.encode(prompt + text).ids
        return ids

    def embed(self, texts: list[str], *, task: str | None = None, role: Role | None = None) -> Vectors:
        """[n, hidden] float64."""
        adaptation = adaptation_of(task, role)
        model, rows = self.model(adaptation), []
        for text in texts:
            ids = torch.tensor([self.token_ids(text, task=task, role=role)])
            with torch.inference_mode():
                vector = pooled(model(ids).last_hidden_state[0], self.mode)
            rows.append(torch.nn.functional.normalize(vector, dim=0).numpy())
        return np.stack(rows)

    def model(self, adaptation: str | None) -> JinaEmbeddingsV3Model:
        """The model of the latest task alone is kept: at full size one takes 4.6 GB."""
        if self._held is None or self._held[0] != adaptation:
            self._held = None
            self._held = adaptation, build_model(self.config, renamed(self._weights(adaptation)))
        return self._held[1]

    def _weights(self, adaptation: str | None) -> dict[str, torch.Tensor]:
        """Sums of weights and updates, by the original name."""
        tensors = {name: tensor.double() for name, tensor in load_file(self.folder / "model.safetensors").items()}
        updates = self._updates(tensors, adaptation) if adaptation else {}
        factor = self.config["lora_alpha"] / self.config["lora_rank"]
        found = {}
        for name, tensor in tensors.items():
            if ".lora_" not in name:
                plain = name.replace(f"{STACKED}.original", ".weight")
                found[plain] = tensor.add_(updates[plain], alpha=factor) if plain in updates else tensor
        return found

    def _updates(self, tensors: dict[str, torch.Tensor], adaptation: str) -> dict[str, torch.Tensor]:
        folder = self.folder / folder_of(adaptation)
        if not folder.exists():
            task = self.config["lora_adaptations"].index(adaptation)
            return {
                f"{name.removesuffix(f'{STACKED}.0.lora_A')}.weight": _product(name, tensors, task)
                for name in tensors
                if name.endswith(".lora_A")
            }
        split = {name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        settings = read_json(folder / "adapter_config.json")
        self.config |= {"lora_alpha": settings["lora_alpha"], "lora_rank": settings["r"]}
        found: dict[str, torch.Tensor] = {}
        for name, a in split.items():
            if "lora_embedding_A" in name:
                found[name.replace("lora_embedding_A", "weight")] = (split[name.replace("_A", "_B")] @ a).T
            elif name.endswith("lora_A.weight"):
                found[name.replace("lora_A.weight", "weight")] = split[name.replace("lora_A", "lora_B")] @ a
        for i in range(self.config["num_hidden_layers"]):
            layer = f"roberta.encoder.layers.{i}"
            parts = [found.pop(f"{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
            found[f"{layer}.mixer.Wqkv.weight"] = torch.cat(parts)
        return found


def _product(name: str, tensors: dict[str, torch.Tensor], task: int) -> torch.Tensor:
    a, b = tensors[name][task], tensors[name.replace("lora_A", "lora_B")][task]
    return a @ b if name.startswith((WORDS, TYPES)) else b @ a


def build_model(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> JinaEmbeddingsV3Model:
    """transformers' model in float64, told in its own words what the config's keys say."""
    keys = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    told = JinaEmbeddingsV3Config(
        **{key: config[key] for key in keys},
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
    )
    model = JinaEmbeddingsV3Model(told, add_pooling_layer=True).to(torch.float64).eval()
    model.load_state_dict(tensors, strict=True)
    return model


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of transformers' model: query, key and value apart."""
    found = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("roberta.").replace("emb_ln", "embeddings.LayerNorm").replace("encoder.", "")
        short = short.replace("mixer.out_proj", "self_attn.o_proj")
        short = short.replace("norm1", "post_attention_layernorm").replace("norm2", "post_mlp_layernorm")
        if "mixer.Wqkv" not in short:
            found[short] = tensor
            continue
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            found[short.replace("mixer.Wqkv", f"self_attn.{part}_proj")] = rows
    return found


def _edit(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """A mutant: the tensors of every file that holds updates changed in place."""

    def mutate(folder: Path) -> None:
        for path in sorted(folder.glob("*/adapter_model.safetensors")) or [folder / "model.safetensors"]:
            edit_weights(path, edit)

    return mutate


def _zero(*matrices: str) -> Callable[[Path], None]:
    """The updates of every matrix whose name has one of ``matrices`` in it change nothing."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".lora_" in name and any(matrix in name for matrix in matrices):
                tensor.zero_()

    return _edit(edit)


def _swap_key_and_value(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "Wqkv" in name and name.endswith(("original", "Wqkv.weight"))]:
            query, key, value = tensors[name].chunk(3)
            tensors[name] = torch.cat([query, value, key])

    edit_weights(folder / "model.safetensors", edit)


def _scale_otherwise(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(lora_alpha=4))
    for path in folder.glob("*/adapter_config.json"):
        edit_json(path, lambda config: config.update(lora_alpha=4))


def _take_other_task(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["lora_adaptations"].reverse())
    query, passage = folder / "retrieval_query", folder / "retrieval_passage"
    if query.exists():
        query.rename(folder / "kept")
        passage.rename(query)
        (folder / "kept").rename(passage)


MUTANTS: dict[str, Callable[[Path], None]] = {
    "theta": edit_config(lambda config: config.update(rotary_emb_base=10000.0)),
    "epsilon": edit_config(lambda config: config.update(layer_norm_eps=1e-12)),
    "swapped key and value": _swap_key_and_value,
    "pooling": pool_otherwise("cls_token"),
    "dropped first token": drop_token(0),
    "dropped last token": drop_token(-1),
    "adapter ignored": _zero(""),
    "adapter of the words ignored": _zero("word_embeddings"),
    "adapter of the type ignored": _zero("token_type_embeddings"),
    "adapter of queries, keys and values ignored": _zero("Wqkv", "self_attn"),
    "wrong scaling": _scale_otherwise,
    "adapter of another task": _take_other_task,
}


def _family(name: str, build: Callable[[Path, Size, int], None]) -> Family:
    roles: tuple[Role | None, ...] = ("query", "document")
    has_full = build is build_stacked
    return Family(name, "embedder", build, JinaReference, MUTANTS, tasks=TASKS, roles=roles, has_full=has_full)


FAMILIES = (_family("jina-embeddings-v3", build_stacked), _family("jina-embeddings-v3-hf", build_native))
