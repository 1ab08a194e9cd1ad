"""What a server could get wrong in any ModernBERT, as edits of its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_families.files import edit_json
from model_families.modernbert_layout import Published
from model_families.module_files import edit_config
from model_families.weights import edit_weights


def _set_theta(kind: str, theta: float) -> Callable[[Path], None]:
    def edit(config: dict[str, Any]) -> None:
        if "rope_parameters" in config:
            config["rope_parameters"][{"global": "full_attention", "local": "sliding_attention"}[kind]][
                "rope_theta"
            ] = theta
        else:
            config[f"{kind}_rope_theta"] = theta

    return edit_config(edit)


def _every_second_layer_is_global(config: dict[str, Any]) -> None:
    if "layer_types" in config:
        config["layer_types"] = [
            ("full_attention", "sliding_attention")[i % 2] for i in range(config["num_hidden_layers"])
        ]
    else:
        config["global_attn_every_n_layers"] = 2


def _swap_halves(folder: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("mlp.Wi.weight")]:
            tensors[name] = torch.cat(tensors[name].chunk(2)[::-1])

    edit_weights(folder / "model.safetensors", edit)


def drop_first_token(folder: Path) -> None:
    """Without the special token before a text."""

    def edit(values: dict[str, Any]) -> None:
        for kind in ("single", "pair"):
            del values["post_processor"][kind][0]

    edit_json(folder / "tokenizer.json", edit)


def drop_last_token(folder: Path) -> None:
    """Without the special token behind a text."""

    def edit(values: dict[str, Any]) -> None:
        for kind in ("single", "pair"):
            del values["post_processor"][kind][-1]

    edit_json(folder / "tokenizer.json", edit)


def mutants_of(published: Published) -> dict[str, Callable[[Path], None]]:
    """What a server could get wrong in any ModernBERT."""
    other = "silu" if published.activation == "gelu" else "gelu"
    return {
        "window plus 1": edit_config(lambda config: config.update(local_attention=config["local_attention"] + 2)),
        "window minus 1": edit_config(lambda config: config.update(local_attention=config["local_attention"] - 2)),
        "global theta": _set_theta("global", 10000.0),
        "local theta": _set_theta("local", 160000.0 if published.local_theta < 1e5 else 10000.0),
        "layer pattern": edit_config(_every_second_layer_is_global),
        "activation": edit_config(lambda config: config.update(hidden_activation=other)),
        "swapped gate halves": _swap_halves,
        "dropped first token": drop_first_token,
        **({"dropped last token": drop_last_token} if published.last else {}),
    }
