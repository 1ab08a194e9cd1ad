"""Jina embeddings v5: the base repositories of text-small and text-nano with four adapters, and two merged ones.

The config of text-nano and the adapters' are the published ones; of text-small's only some keys are public. The merged
repositories have the keys of transformers 5.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from model_families.decoder_layout import (
    Shape,
    config_of,
    end_of,
    plan_of,
    qwen_config,
    qwen_tokenizer,
    write_last_token_modules,
    write_prompts,
    write_qwen_tokenizer,
)
from model_families.decoder_mutants import DECODER, POOLED, PROMPTS, QWEN3, Mutant, appended, scaled, setting
from model_families.decoder_reference import DecoderReference, SentenceReference, open_model
from model_families.family import Family, Role, Size, Vectors
from model_families.files import read_json, write_json, write_tokenizer
from model_families.tokenizers_bpe import byte_level
from model_families.weights import Plan, edit_weights, linear, write_weights

SMALL = Shape(theta=3.5e6)
NANO = Shape(
    layers=12, hidden=768, heads=12, kv_heads=12, head_size=64, inner=3072, vocabulary=128256, positions=8192,
    eps=1e-5, has_head_norms=False,
)  # fmt: skip
TINY_NANO = {"kv_heads": 4, "head_size": 16}  # EuroBERT's heads add up to the hidden size, and none share keys
TASKS = ("retrieval", "text-matching", "clustering", "classification")
PROMPT_NAMES = {"query": "Query: ", "document": "Document: "}
RANK = 32
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|mask|>", "<|parallel_sep|>", "<|pad|>")
LLAMA = byte_level(LLAMA_SPECIAL, digits="{1,3}", nfc=False)
QWEN = qwen_tokenizer()
END = end_of(QWEN)


def shape_of(variant: str, size: Size) -> Shape:
    """The sizes of "small" or "nano"."""
    return SMALL.sized(size) if variant == "small" else NANO.sized(size, **TINY_NANO)


def base_config(variant: str, shape: Shape) -> dict[str, Any]:
    """config.json of a base repository, whose model_type only its remote code knows."""
    remote = {
        "auto_map": {
            "AutoConfig": "configuration_jina_embeddings_v5.JinaEmbeddingsV5Config",
            "AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model",
        },
        "model_type": "jina_embeddings_v5",
        "task_names": list(TASKS),
    }
    if variant == "small":
        return {**qwen_config(shape, "JinaEmbeddingsV5Model", END), **remote}
    begin, end, mask = (LLAMA.token_to_id(token) for token in LLAMA_SPECIAL[:3])
    special = {
        "bos_token": "<|begin_of_text|>", "bos_token_id": begin, "eos_token": "<|end_of_text|>", "eos_token_id": end,
        "pad_token": "<|end_of_text|>", "pad_token_id": end, "mask_token": "<|mask|>", "mask_token_id": mask,
        "hidden_dropout": 0.0, "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False,
        "torch_dtype": "float32", "transformers_version": "4.40.0.dev0", "is_decoder": False,
    }  # fmt: skip
    values = {**config_of(shape, "", "JinaEmbeddingsV5Model"), **special, **remote}
    del values["head_dim"]
    return values


def merged_config(variant: str, shape: Shape) -> dict[str, Any]:
    """config.json of a merged repository: natively known, keys of transformers 5."""
    if variant == "small":
        values = qwen_config(shape, "Qwen3Model", END, layer_types=["full_attention"] * shape.layers)
        del values["rope_scaling"]
    else:
        begin, end, mask = (LLAMA.token_to_id(token) for token in LLAMA_SPECIAL[:3])
        special = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end, "mask_token_id": mask}
        values = config_of(shape, "eurobert", "EuroBertModel", classifier_pooling="late", tie_word_embeddings=False)
        values |= special
    del values["rope_theta"], values["torch_dtype"]
    rotary = {"rope_theta": shape.theta, "rope_type": "default"}
    return {**values, "dtype": "bfloat16", "rope_parameters": rotary, "transformers_version": "5.3.0"}


def adapter_plan(shape: Shape) -> Plan:
    """Every tensor of an adapter: all seven linears of every layer, as PEFT names them."""
    plan: Plan = {}
    for name, weight in plan_of(shape).items():
        if name.endswith("_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            plan[f"{stem}.lora_A.weight"] = linear(RANK, weight.shape[1])
            plan[f"{stem}.lora_B.weight"] = linear(weight.shape[0], RANK, 0.5)
    return plan


def adapter_config(variant: str, task: str) -> dict[str, Any]:
    """adapter_config.json as published; dropout is the only value that differs between tasks."""
    nothing = (
        "auto_mapping", "corda_config", "eva_config", "exclude_modules", "layer_replication", "layers_pattern",
        "layers_to_transform", "megatron_config", "modules_to_save", "revision", "trainable_token_indices",
    )  # fmt: skip
    values = {
        "alpha_pattern": {}, "base_model_name_or_path": f"jinaai/jina-embeddings-v5-text-{variant}", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": "gaussian", "loftq_config": {},
        "lora_alpha": RANK, "lora_bias": False, "lora_dropout": 0.05 if task == "classification" else 0.1,
        "megatron_core": "megatron.core", "peft_type": "LORA", "r": RANK, "rank_pattern": {},
        "target_modules": ["gate_proj", "v_proj", "q_proj", "down_proj", "o_proj", "k_proj", "up_proj"],
        "task_type": "FEATURE_EXTRACTION", "use_dora": False, "use_rslora": False, **dict.fromkeys(nothing),
    }  # fmt: skip
    return dict(sorted(values.items()))


def write_files(folder: Path, variant: str) -> None:
    """Tokenizer and prompts, the same in base and merged repositories. No token is added to a text."""
    if variant == "small":
        write_qwen_tokenizer(folder, QWEN)
    else:
        names = ("bos_token", "eos_token", "mask_token", "pad_token")
        special = dict(zip(names, (*LLAMA_SPECIAL[:3], LLAMA_SPECIAL[4]), strict=True))
        config = {
            **special, "clean_up_tokenization_spaces": True, "extra_special_tokens": {},
            "model_input_names": ["input_ids", "attention_mask"], "model_max_length": 10**30,
            "tokenizer_class": "PreTrainedTokenizer",
        }  # fmt: skip
        write_tokenizer(folder, LLAMA, config, *special)
    write_prompts(folder, PROMPT_NAMES, "document")


def build_base(folder: Path, size: Size, seed: int, *, variant: str) -> None:
    """A base repository: bare tensor names, no metadata in the header, bfloat16 whatever the config says."""
    shape = shape_of(variant, size)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", base_config(variant, shape))
    write_weights(folder / "model.safetensors", plan_of(shape), seed, torch.bfloat16, metadata=False)
    write_files(folder, variant)
    module = {"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer"}
    write_json(folder / "modules.json", [{**module, "kwargs": ["task", "truncate_dim"]}])
    for number, task in enumerate(TASKS):
        adapter = folder / "adapters" / task
        write_json(adapter / "adapter_config.json", adapter_config(variant, task))
        path = adapter / "adapter_model.safetensors"
        write_weights(path, adapter_plan(shape), seed + 1 + number, torch.bfloat16, metadata=False)


def build_merged(folder: Path, size: Size, seed: int, *, variant: str) -> None:
    """A repository with one adapter merged, which is a plain model with sentence-transformers' modules."""
    shape = shape_of(variant, size)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", merged_config(variant, shape))
    write_weights(folder / "model.safetensors", plan_of(shape), seed, torch.bfloat16)
    write_files(folder, variant)
    write_last_token_modules(folder, shape.hidden)


class JinaReference(DecoderReference):
    """The base model with its adapters in PEFT, one active at a time, as the remote code has it."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")
        is_small = "is_decoder" not in config
        kind, name = (transformers.Qwen3Model, "qwen3") if is_small else (transformers.EuroBertModel, "eurobert")
        base = open_model(folder, kind, name)
        adapters = folder / "adapters"
        model = peft.PeftModel.from_pretrained(base, adapters / TASKS[0], adapter_name=TASKS[0])
        for task in TASKS[1:]:
            model.load_adapter(adapters / task, adapter_name=task)
        super().__init__(folder, model.eval())
        self.is_causal = bool(config.get("is_decoder"))  # a mutant of text-nano

    def states(self, ids: list[int]) -> torch.Tensor:
        """[tokens, hidden] behind the final norm, under the active adapter."""
        count = len(ids)
        mask = torch.ones(1, 1, count, count, dtype=torch.bool).tril() if self.is_causal else None
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]

    def embed(
        self, texts: list[str], *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> Vectors:
        """[n, hidden]; there is no vector without a task."""
        if task is None:
            raise ValueError("task must be one of " + ", ".join(TASKS))
        self.model.set_adapter(task)
        return super().embed(texts, role=role, instruction=instruction)


def each_adapter(mutant: Mutant) -> Mutant:
    """The mutant in every adapter's folder."""

    def mutate(folder: Path) -> None:
        for task in TASKS:
            mutant(folder / "adapters" / task)

    return mutate


def without(part: str) -> Mutant:
    """The adapter's B matrices of some linears are zero."""

    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "lora_B" in name and part in name:
                tensors[name] = torch.zeros_like(tensors[name])

    return lambda folder: edit_weights(folder / "adapter_model.safetensors", zero)


def exchanged(folder: Path) -> None:
    """Two tasks have each other's adapter."""
    first, second, aside = (folder / "adapters" / name for name in ("retrieval", "text-matching", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


ADAPTERS: dict[str, Mutant] = {
    "adapter_ignored": each_adapter(without("")),
    "mlp_adapters_ignored": each_adapter(without("mlp")),
    "wrong_scaling": each_adapter(scaled("adapter_config.json", "lora_alpha", 2)),
    "scaling_by_the_root": each_adapter(setting("adapter_config.json", use_rslora=True)),
    "adapters_exchanged": exchanged,
}
SMALL_MUTANTS = {**QWEN3, **PROMPTS}
NANO_MUTANTS = {**DECODER, **PROMPTS}
APPENDED = {"small": appended("<|endoftext|>"), "nano": appended("<|end_of_text|>")}
FAMILIES = (
    *(
        Family(
            name=f"jina-embeddings-v5-text-{variant}",
            kind="embedder",
            build=partial(build_base, variant=variant),
            reference=JinaReference,
            mutants={**mutants, **ADAPTERS, "appended_eos": APPENDED[variant]},
            tasks=TASKS,
            roles=("query", "document", None),
            has_full=True,
        )
        for variant, mutants in (
            ("small", SMALL_MUTANTS),
            ("nano", {**NANO_MUTANTS, "causal": setting("config.json", is_decoder=True)}),
        )
    ),
    *(
        Family(
            name=f"jina-embeddings-v5-text-{variant}-retrieval",
            kind="embedder",
            build=partial(build_merged, variant=variant),
            reference=SentenceReference,
            mutants={**mutants, **POOLED, "appended_eos": APPENDED[variant]},
            roles=("query", "document", None),
        )
        for variant, mutants in (("small", SMALL_MUTANTS), ("nano", NANO_MUTANTS))
    ),
)
