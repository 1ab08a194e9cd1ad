"""Adapters on linears that a checkpoint stores as one and the backbone cuts in two: ModernBERT's Wi, GTE's up and gate.

The reference reads the same folder with scale * B A added to its weights.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import gte, modernbert
from model_families.checks import TEXTS, cosines
from model_families.family import Family
from model_families.weights import edit_weights
from safetensors.torch import load_file, save_file

from embedmux.server.bridge.local import LocalEngine
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Tokens

RANK, ALPHA = 4, 12
FAMILIES = (modernbert.FAMILIES[0], gte.FAMILIES[0])
TARGETS = {
    "gte-modernbert-base": ["Wqkv", "Wo", "Wi"],
    "gte-base-en-v1.5": ["qkv_proj", "o_proj", "up_gate_proj", "down_proj"],
}


def write_adapter(folder: Path, weights: dict[str, torch.Tensor], targets: list[str], seed: int) -> None:
    """A folder as PEFT saves it, with an update of every linear that the targets name."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            out, width = weight.shape
            key = f"base_model.model.{module}.lora"
            factors[f"{key}_A.weight"] = torch.randn(RANK, width, generator=generator) / width**0.5
            factors[f"{key}_B.weight"] = torch.randn(out, RANK, generator=generator) / (2 * RANK)
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "bias": "none",
        "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": "base", "fan_in_fan_out": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def merge(folder: Path, adapter: Path) -> None:
    """Adds an adapter's update to the weights of a folder."""
    factors = load_file(adapter / "adapter_model.safetensors")

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key, a in factors.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace("lora_A.", "")
                update = factors[key.replace("lora_A", "lora_B")].double() @ a.double() * (ALPHA / RANK)
                tensors[name] = (tensors[name].double() + update).to(torch.float32)

    edit_weights(folder / "model.safetensors", edit)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_batch_with_adapters_equals_their_merged_weights(family: Family, tmp_path: Path) -> None:
    base = tmp_path / family.name
    family.build(base, "tiny", 9)
    weights = load_file(base / "model.safetensors")
    wanted = [family.reference(base).embed(TEXTS)]
    for number in (1, 2):
        adapter = tmp_path / "adapters" / f"task-{number}"
        write_adapter(adapter, weights, TARGETS[family.name], number)
        merged = shutil.copytree(base, tmp_path / f"merged-{number}")
        merge(merged, adapter)
        wanted.append(family.reference(merged).embed(TEXTS))
    reference = family.reference(base)
    engine = LocalEngine(EngineConfig(models=(ModelConfig(str(base), tmp_path / "adapters"),), max_adapters=4))
    try:
        handles = [BASE_MODEL, *(info.handle for _, info in sorted(engine.adapters_of(0).items()))]
        assert len(handles) == 3
        ids = [reference.token_ids(text) for text in TEXTS]
        tokens = [Tokens(each, len(each)) for each in ids for _ in handles]
        output = OutputSpec(wanted[0].shape[1], Encoding.FLOAT32)
        data, errors = asyncio.run(engine.embed(0, tokens, handles * len(TEXTS), output))
    finally:
        engine.close()
    assert not errors
    found = np.frombuffer(data, "<f4").reshape(len(TEXTS), len(handles), -1)
    for place, vectors in enumerate(wanted):
        assert cosines(found[:, place], vectors).min() > 0.99999
        assert all(cosines(found[:, place], other).min() < 0.99 for other in wanted if other is not vectors)
