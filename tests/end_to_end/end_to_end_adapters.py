"""Random adapters for MiniLM, written by PEFT as a trainer would write them. Loaded by its path, see conftest.py."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
import transformers

ALL_LINEARS = ["query", "key", "value", "dense"]


@dataclass(frozen=True)
class Recipe:
    """What one made adapter is; ``options`` go to peft.LoraConfig."""

    task: str
    rank: int
    linears: list[str]
    prompts: dict[str, str] | None
    options: dict[str, Any]


RECIPES = {
    "retrieval": Recipe("retrieval", 4, ALL_LINEARS, {"query": "query: ", "document": "document: "}, {}),
    "text-matching": Recipe("text-matching", 7, ["query", "value"], None, {"lora_alpha": 21}),
    "classification": Recipe("classification", 12, ALL_LINEARS, None, {"rank_pattern": {"layer.0.output.dense": 5}}),
    "clustering": Recipe(
        "clustering", 16, ["value", "dense"], {"query": "group: ", "document": "group: "}, {"use_rslora": True}
    ),
}
# Not loaded at the start: below a folder of their own, for the tests that load by call.
SPARE = Recipe("spare", 9, ALL_LINEARS, None, {})
SPARES = ("spare/one", "spare/two", "spare/three")


def make_adapters(root: Path, model: Path) -> None:
    """Four adapters below ``root``, three spare ones below ``root/spare``, and ranges for the bare model."""
    for seed, (name, recipe) in enumerate([*RECIPES.items(), *((name, SPARE) for name in SPARES)]):
        folder = root / name
        _write_weights(folder, model, recipe, seed)
        if name in RECIPES:
            (folder / "task.json").write_text(json.dumps({"task": recipe.task}))
            _write_ranges(folder / "calibration.safetensors", (384, 128), seed)
        if recipe.prompts is not None:
            (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": recipe.prompts}))
    (root / "base").mkdir()
    _write_ranges(root / "base" / "calibration.safetensors", (384,), 99)


def _write_weights(folder: Path, model: Path, recipe: Recipe, seed: int) -> None:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=recipe.rank, target_modules=recipe.linears, **{"lora_alpha": 16, **recipe.options})
    backbone = transformers.BertModel.from_pretrained(model, add_pooling_layer=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an attribute's older name
        adapted = peft.get_peft_model(backbone, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            # Large enough to turn every vector, small enough that vectors of different texts stay apart.
            torch.nn.init.normal_(weight, std=0.04)
    adapted.save_pretrained(folder)


def _write_ranges(path: Path, sizes: tuple[int, ...], seed: int) -> None:
    """Minima and maxima, [2, size] float32: narrow enough that some values are clipped."""
    generator = torch.Generator().manual_seed(seed)
    ranges = {}
    for size in sizes:
        spread = size**-0.5 * (1 + torch.rand(2, size, generator=generator))
        ranges[str(size)] = torch.stack([-spread[0], spread[1]]).contiguous()
    safetensors.torch.save_file(ranges, path)
