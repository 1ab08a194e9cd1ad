"""What a server could get wrong in any model of GTE's family, as edits of its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_families.gte_layout import Published
from model_families.modernbert_mutants import drop_first_token, drop_last_token
from model_families.module_files import edit_config
from model_families.weights import edit_weights


def _set_theta(config: dict[str, Any]) -> None:
    config.get("rope_parameters", config)["rope_theta"] = 10000.0


def _halve_factor(config: dict[str, Any]) -> None:
    if (rope := config.get("rope_parameters")) is not None:
        rope["rope_theta"] /= 2
        rope["factor"] = rope["factor"] ** (2 / 3)  # of 8, whose half is 8^(2 / 3)
    else:
        config["rope_scaling"]["factor"] /= 2


def _keep_base_only(config: dict[str, Any]) -> None:
    """The scaled base without the factor on the frequencies."""
    if (rope := config.get("rope_parameters")) is not None:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    else:
        config.update(rope_theta=config["rope_theta"] * config["rope_scaling"]["factor"], rope_scaling=None)


def _edit_tensors(ending: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def edit_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(ending)]:
            tensors[name] = edit(tensors[name]).contiguous()

    return lambda folder: edit_weights(folder / "model.safetensors", edit_all)


def mutants_of(published: Published) -> dict[str, Callable[[Path], None]]:
    """What a server could get wrong in any of them."""
    mutants: dict[str, Callable[[Path], None]] = {
        "theta": edit_config(_set_theta),
        "swapped gate halves": _edit_tensors("up_gate_proj.weight", lambda weight: torch.cat(weight.chunk(2)[::-1])),
        "activation": edit_config(lambda config: config.update(hidden_act="silu")),
        "without biases": _edit_tensors("_proj.bias", torch.zeros_like),
        "dropped first token": drop_first_token,
        "dropped last token": drop_last_token,
        "norm's epsilon": edit_config(lambda config: config.update(layer_norm_eps=0.1)),
    }
    if published.ntk:
        mutants |= {"half the NTK factor": edit_config(_halve_factor), "NTK base only": edit_config(_keep_base_only)}
    if published.types > 1:
        mutants["second type"] = _edit_tensors("token_type_embeddings.weight", lambda weight: weight.flip(0))
    if published.types == 1:
        mutants["no type"] = _edit_tensors("token_type_embeddings.weight", torch.zeros_like)
    return mutants
