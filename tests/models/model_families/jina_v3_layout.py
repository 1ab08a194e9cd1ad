"""Jina embeddings v3: XLM-R with rotary positions and five low-rank updates of every weight matrix, embeddings too.

Two published layouts. The original keeps the updates of all tasks stacked beside each weight, as torch's
parametrizations name them. The repository for transformers 5 has plain weights and a folder of updates for each task.
Names and config keys as published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_families.encoder_tokenizers import write_unigram
from model_families.family import Size
from model_families.files import write_json
from model_families.module_files import write_modules, write_prompts
from model_families.weights import Draw, Plan, draw, linear, scale, shift, write_weights

ADAPTATIONS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "", "classification": "", "text-matching": "",
}  # fmt: skip
WORDS = "roberta.embeddings.word_embeddings"
TYPES = "roberta.embeddings.token_type_embeddings"
STACKED = ".parametrizations.weight"


@dataclass(frozen=True)
class Published:
    """The sizes of the one published model, and of the tiny one."""

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    inner: int = 4096
    vocabulary: int = 250002
    rank: int = 4
    peak: float = 1.8  # gain of queries and keys, see weights.linear
    share: float = 0.2  # of a weight's size that a task adds to it

    def at(self, size: Size) -> Published:
        """The same model, small enough for tests."""
        if size == "full":
            return self
        return replace(self, layers=3, hidden=64, heads=4, inner=128, vocabulary=0, share=0.5)


def matrices_of(shape: Published) -> dict[str, tuple[int, int]]:
    """Every matrix that has updates -> (rows, columns), by the name in the original file."""
    hidden, inner = shape.hidden, shape.inner
    found = {WORDS: (shape.vocabulary, hidden), TYPES: (1, hidden), "roberta.pooler.dense": (hidden, hidden)}
    for i in range(shape.layers):
        layer = f"roberta.encoder.layers.{i}"
        found |= {
            f"{layer}.mixer.Wqkv": (3 * hidden, hidden), f"{layer}.mixer.out_proj": (hidden, hidden),
            f"{layer}.mlp.fc1": (inner, hidden), f"{layer}.mlp.fc2": (hidden, inner),
        }  # fmt: skip
    return found


def base_plan(shape: Published) -> Plan:
    """The weights without updates, by the name in the original file."""
    plan: Plan = {}
    norms = ["roberta.emb_ln"]
    for name, (rows, columns) in matrices_of(shape).items():
        if name in (WORDS, TYPES):
            # As small as the root of the norm's epsilon, so that a wrong one is seen.
            plan[f"{name}.weight"] = Draw((rows, columns), 4e-3 if name == WORDS else 1e-3)
        else:
            # A little from each block, so that texts do not look alike behind all of them.
            gain = {"Wqkv": shape.peak, "out_proj": 1.2 / shape.peak, "fc2": 0.6}.get(name.rpartition(".")[2], 1.0)
            plan |= {f"{name}.weight": linear(rows, columns, gain), f"{name}.bias": shift(rows, 0.05)}
    for i in range(shape.layers):
        norms += [f"roberta.encoder.layers.{i}.norm1", f"roberta.encoder.layers.{i}.norm2"]
    for norm in norms:
        plan |= {f"{norm}.weight": scale(shape.hidden), f"{norm}.bias": shift(shape.hidden, 0.1)}
    return plan


def stacked_plan(shape: Published) -> Plan:
    """The original file: weights as ``original``, and the updates of all tasks, one behind the other.

    Linears have A [5, rank, columns] and B [5, rows, rank]; embeddings A [5, rows, rank] and B [5, rank, columns].
    """
    plan, rank, tasks = base_plan(shape), shape.rank, len(ADAPTATIONS)
    for name, (rows, columns) in matrices_of(shape).items():
        weight = plan.pop(f"{name}.weight")
        # Once multiplied by alpha / rank, an update's entries are this share of the weight's.
        std = (shape.share * weight.std * rank**0.5) ** 0.5
        is_embedding = name in (WORDS, TYPES)
        first = (tasks, rows, rank) if is_embedding else (tasks, rank, columns)
        second = (tasks, rank, columns) if is_embedding else (tasks, rows, rank)
        plan[f"{name}{STACKED}.original"] = weight
        plan |= {f"{name}{STACKED}.0.lora_A": Draw(first, std), f"{name}{STACKED}.0.lora_B": Draw(second, std)}
    return plan


def config_of(shape: Published, *, is_native: bool) -> dict[str, Any]:
    """config.json with the keys of the published one."""
    code = "jinaai/xlm-roberta-flash-implementation"
    mapped = {
        "AutoConfig": f"{code}--configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": f"{code}--modeling_lora.XLMRobertaLoRA",
        "AutoModelForMaskedLM": f"{code}--modeling_xlm_roberta.XLMRobertaForMaskedLM",
        "AutoModelForPreTraining": f"{code}--modeling_xlm_roberta.XLMRobertaForPreTraining",
    }
    first: dict[str, Any] = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "auto_map": mapped}
    if is_native:
        first = {"architectures": ["JinaEmbeddingsV3Model"], "model_type": "jina_embeddings_v3"}
    return {
        "_name_or_path": "jinaai/jina-embeddings-v3", **first, "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
        "classifier_dropout": None, "emb_pooler": None, "eos_token_id": 2, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": shape.hidden, "initializer_range": 0.02,
        "intermediate_size": shape.inner, "layer_norm_eps": 1e-05, "load_trained_adapters": True,
        "lora_adaptations": list(ADAPTATIONS), "lora_alpha": 1, "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False, "lora_rank": shape.rank,
        "matryoshka_dimensions": [size for size in (32, 64, 128, 256, 512, 768, 1024) if size <= shape.hidden],
        "max_position_embeddings": 8194, "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers,
        "output_past": True, "pad_token_id": 1, "position_embedding_type": "rotary", "rotary_emb_base": 20000.0,
        "torch_dtype": "bfloat16", "transformers_version": "4.30.2", "truncate_dim": None, "type_vocab_size": 1,
        "use_cache": True, "use_flash_attn": True, "vocab_size": shape.vocabulary, "task_instructions": PROMPTS,
    }  # fmt: skip


def _write_settings(folder: Path, size: Size, *, is_native: bool) -> Published:
    shape = Published().at(size)
    ids = write_unigram(folder, max_tokens=8194)
    shape = replace(shape, vocabulary=shape.vocabulary or ids + 3)
    write_json(folder / "config.json", config_of(shape, is_native=is_native))
    first = ("0", "sentence_transformers.models.Transformer") if is_native else ("transformer", "custom_st.Transformer")
    write_modules(folder, hidden=shape.hidden, mode="mean_tokens", max_tokens=8194, first=first)
    write_prompts(folder, PROMPTS)
    return shape


def build_stacked(folder: Path, size: Size, seed: int) -> None:
    shape = _write_settings(folder, size, is_native=False)
    write_weights(folder / "model.safetensors", stacked_plan(shape), seed, torch.bfloat16)


def build_native(folder: Path, size: Size, seed: int) -> None:
    """The numbers of the original layout in files of the other."""
    shape = _write_settings(folder, size, is_native=True)
    plan = stacked_plan(shape)
    base = {
        name.replace(f"{STACKED}.original", ".weight"): draw(plan, name, seed).to(torch.bfloat16)
        for name in plan
        if ".lora_" not in name
    }
    save_file(base, folder / "model.safetensors", {"format": "pt"})
    stacks = {name: draw(plan, name, seed).to(torch.bfloat16) for name in plan if ".lora_" in name}
    for task, adaptation in enumerate(ADAPTATIONS):
        tensors: dict[str, torch.Tensor] = {}
        for matrix in matrices_of(shape):
            a, b = (stacks[f"{matrix}{STACKED}.0.lora_{letter}"][task] for letter in "AB")
            tensors |= _split(matrix, a, b)
        target = folder / folder_of(adaptation)
        target.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "adapter_model.safetensors")
        write_json(target / "adapter_config.json", adapter_config(shape.rank))


def folder_of(adaptation: str) -> str:
    """The folder of one task's updates in the native layout."""
    return adaptation.replace(".", "_").replace("-", "_")


def adapter_config(rank: int) -> dict[str, Any]:
    """adapter_config.json of the native layout."""
    targets = ["word_embeddings", "token_type_embeddings", *(f"{part}_proj" for part in "qkvo"), "fc1", "fc2", "dense"]
    return {
        "peft_type": "LORA", "base_model_name_or_path": None, "r": rank, "lora_alpha": 1, "lora_dropout": 0.0,
        "target_modules": targets,
    }  # fmt: skip


def _split(matrix: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """One task's update of one matrix as the folders of the native layout name it."""
    if matrix in (WORDS, TYPES):
        return {f"{matrix}.lora_embedding_A": a.T, f"{matrix}.lora_embedding_B": b.T}
    if not matrix.endswith("Wqkv"):
        return {f"{matrix}.lora_A.weight": a, f"{matrix}.lora_B.weight": b}
    found = {}
    for part, rows in zip("qkv", b.chunk(3), strict=True):
        name = matrix.replace("mixer.Wqkv", f"self_attn.{part}_proj")
        found |= {f"{name}.lora_A.weight": a.clone(), f"{name}.lora_B.weight": rows}
    return found
