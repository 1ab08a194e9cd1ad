"""Ways to get a decoder wrong that a careless test would not notice: each edits a copy of a folder in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_families.files import edit_json, read_json
from model_families.weights import Tensors, edit_checkpoint

Mutant = Callable[[Path], None]


def setting(file: str, **values: Any) -> Mutant:
    """Other values in a JSON file of the folder."""
    return lambda folder: edit_json(folder / file, lambda found: found.update(values))


def scaled(file: str, key: str, factor: float) -> Mutant:
    """A number of a JSON file times ``factor``."""

    def edit(found: dict[str, Any]) -> None:
        found[key] = type(found[key])(found[key] * factor)

    return lambda folder: edit_json(folder / file, edit)


def weights(edit: Callable[[Tensors, dict[str, Any]], object]) -> Mutant:
    """All tensors of the checkpoint, edited by what config.json says."""
    return lambda folder: edit_checkpoint(folder, lambda found: edit(found, read_json(folder / "config.json")))


def of(tensors: Tensors, ending: str) -> list[str]:
    """The names that end so."""
    found = [name for name in tensors if name.endswith(ending)]
    assert found, ending
    return found


def _swap_gate(tensors: Tensors, config: dict[str, Any]) -> None:
    for gate in of(tensors, "mlp.gate_proj.weight"):
        up = gate.replace("gate_proj", "up_proj")
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _interleave(tensors: Tensors, config: dict[str, Any]) -> None:
    # Rotating the first half with the second is now what rotating neighbours was.
    size = _head_size(config)
    order = torch.arange(size).reshape(2, size // 2).T.reshape(-1)
    for part in ("q", "k"):
        for name in [found for found in tensors if f"self_attn.{part}_proj." in found]:
            heads = tensors[name].unflatten(0, (-1, size))
            tensors[name] = heads[:, order].flatten(0, 1).contiguous()
        for name in [found for found in tensors if found.endswith(f"self_attn.{part}_norm.weight")]:
            tensors[name] = tensors[name][order].contiguous()


def _tile_heads(tensors: Tensors, config: dict[str, Any]) -> None:
    # Query head h reads key head h modulo their number instead of h divided by the group's size.
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    order = torch.arange(heads).reshape(heads // groups, groups).T.reshape(-1)
    for name in [found for found in tensors if "self_attn.q_proj." in found]:
        tensors[name] = tensors[name].unflatten(0, (heads, -1))[order].flatten(0, 1).contiguous()
    for name in of(tensors, "self_attn.o_proj.weight"):
        tensors[name] = tensors[name].unflatten(1, (heads, -1))[:, order].flatten(1, 2).contiguous()


def _flatten_final_norm(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in ("norm.weight", "model.norm.weight"):
        if name in tensors:
            tensors[name] = torch.ones_like(tensors[name])


def _ones(ending: str) -> Mutant:
    def edit(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in of(tensors, ending):
            tensors[name] = torch.ones_like(tensors[name])

    return weights(edit)


def _zeros(ending: str) -> Mutant:
    def edit(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in of(tensors, ending):
            tensors[name] = torch.zeros_like(tensors[name])

    return weights(edit)


def no_post_processor(folder: Path) -> None:
    """No special token is added to a text any more."""
    edit_json(folder / "tokenizer.json", lambda found: found.update(post_processor=None))


def appended(token: str) -> Mutant:
    """One special token more behind every text, which is then what is pooled."""

    def mutate(folder: Path) -> None:
        added = read_json(folder / "tokenizer.json")["added_tokens"]
        identity = next(entry["id"] for entry in added if entry["content"] == token)
        single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}]
        special = {token: {"id": token, "ids": [identity], "tokens": [token]}}
        template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
        edit_json(folder / "tokenizer.json", lambda found: found.update(post_processor=template))

    return mutate


def pooling(kind: str) -> Mutant:
    """Another of sentence-transformers' poolings: mean_tokens or cls_token."""
    return setting("1_Pooling/config.json", pooling_mode_lasttoken=False, **{f"pooling_mode_{kind}": True})


def prompts(edit: Callable[[str], str]) -> Mutant:
    """Every prompt of the folder, edited."""

    def each(found: dict[str, Any]) -> None:
        found["prompts"] = {name: edit(prompt) for name, prompt in found["prompts"].items()}

    return lambda folder: edit_json(folder / "config_sentence_transformers.json", each)


def rope_theta(folder: Path) -> None:
    """A quarter of the base, wherever the config has it."""

    def quarter(found: dict[str, Any]) -> None:
        holder = found.get("rope_parameters", found)
        holder["rope_theta"] /= 4

    edit_json(folder / "config.json", quarter)


DECODER: dict[str, Mutant] = {
    "rope_theta": rope_theta,
    "rms_norm_eps": setting("config.json", rms_norm_eps=0.3),
    "swapped_gate_halves": weights(_swap_gate),
    "interleaved_rotary": weights(_interleave),
    "final_norm_ignored": weights(_flatten_final_norm),
}
GROUPED: dict[str, Mutant] = {"tiled_heads": weights(_tile_heads)}
HEAD_NORMS: dict[str, Mutant] = {"head_norms_ignored": _ones("q_norm.weight")}
BIASES: dict[str, Mutant] = {"biases_ignored": _zeros("_proj.bias")}
DIRECTED: dict[str, Mutant] = {"bidirectional": setting("config.json", is_causal=False)}
QWEN3: dict[str, Mutant] = {**DECODER, **GROUPED, **HEAD_NORMS, **DIRECTED}
PROMPTS: dict[str, Mutant] = {
    "prompt_dropped": prompts(lambda prompt: ""),
    "space_behind_prompt": prompts(lambda prompt: f"{prompt} " if prompt else ""),
}
POOLED: dict[str, Mutant] = {"mean_pooling": pooling("mean_tokens"), "first_token": pooling("cls_token")}
