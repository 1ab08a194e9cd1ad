"""A merged adapter on each backbone has the bits of a checkpoint whose weights were merged beforehand.

Fused projections, halves of one stored linear, gates of odd width: whatever the layout, the sum must reach it. Factors
are small multiples of powers of two, so that their product is exact in float32 in any order of sums.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import ALL
from model_families.checks import TEXTS, cosines
from model_families.family import Family
from model_families.jina_v3 import FAMILIES as JINA_V3
from model_families.weights import edit_checkpoint
from safetensors.torch import save_file

from embedmux.server.backbones import find_family
from embedmux.server.backbones.targets import model_targets
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Tokens

RANK, ALPHA = 4, 12
NAMES = (
    "e5-base-v2", "multilingual-e5-base", "qwen3-embedding-0.6b", "jina-embeddings-v5-text-nano-retrieval",
    "gte-modernbert-base", "gte-base-en-v1.5", "nomic-embed-text-v1.5", "embeddinggemma-300m",
)  # fmt: skip
FAMILIES = [family for family in ALL if family.name in NAMES]


def write_adapter(folder: Path, targets: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """A PEFT folder with an update of every target; the updates, by target."""
    generator = torch.Generator().manual_seed(3)
    factors, updates = {}, {}
    for target, (inner, out) in targets.items():
        a = torch.randint(-2, 3, (RANK, inner), generator=generator) / 8
        b = torch.randint(-2, 3, (out, RANK), generator=generator) / 32
        factors[f"base_model.model.{target}.lora_A.weight"] = a
        factors[f"base_model.model.{target}.lora_B.weight"] = b
        updates[target] = b @ a * (ALPHA / RANK)
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    modules = sorted({target.rpartition(".")[2] for target in targets})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return updates


def merge(folder: Path, updates: dict[str, torch.Tensor]) -> None:
    """Adds the updates to the weights of a folder, in float32."""
    prefixes = find_family(read_contract(folder).architecture).PREFIXES

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for target, update in updates.items():
            (name,) = {f"{prefix}{target}.weight" for prefix in ("", *prefixes)} & tensors.keys()
            tensors[name] = tensors[name].float() + update

    edit_checkpoint(folder, edit)


def vectors(engine: LocalEngine, ids: list[list[int]], handles: list[int]) -> np.ndarray:
    """[n, handles, d] of one batch with every text under every handle."""
    tokens = [Tokens(each, len(each)) for each in ids for _ in handles]
    output = OutputSpec(engine.models[0].dimensions, Encoding.FLOAT32)
    data, errors = asyncio.run(engine.embed(0, tokens, handles * len(ids), output))
    assert not errors
    return np.frombuffer(data, "<f4").reshape(len(ids), len(handles), -1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_merged_rows_have_the_bits_of_merged_weights(family: Family, dtype: str, tmp_path: Path) -> None:
    base, root = tmp_path / "base", tmp_path / "adapters"
    family.build(base, "tiny", 9)
    whole = shutil.copytree(base, tmp_path / "whole")
    merge(whole, write_adapter(root / "mine", model_targets(base)))
    reference = family.reference(base)
    ids = [list(map(int, reference.token_ids(text, task=family.tasks[0], role=family.roles[0]))) for text in TEXTS]

    engine = LocalEngine(EngineConfig((ModelConfig(str(whole)),), dtype=dtype))
    wanted = vectors(engine, ids, [BASE_MODEL])[:, 0]
    engine.close()
    engine = LocalEngine(EngineConfig((ModelConfig(str(base), root),), dtype=dtype))
    info = asyncio.run(engine.load_adapter(0, "mine", "merged", "merged"))
    low_rank = engine.adapters_of(0)["mine"].handle
    found = vectors(engine, ids, [info.handle, BASE_MODEL, low_rank])
    engine.close()
    assert found[:, 0].tobytes() == wanted.tobytes()
    assert cosines(found[:, 0], found[:, 1]).min() < 0.99, "an adapter that turns nothing shows nothing"
    if dtype == "float32":  # in bfloat16 some of these random models are 0.99 from their own float32, bare or not
        assert cosines(found[:, 0], found[:, 2]).min() > 1 - 1e-5


def test_what_is_looked_up_stays_low_rank_under_merged_placement(tmp_path: Path) -> None:
    folder = tmp_path / "jina"
    JINA_V3[0].build(folder, "tiny", 1)
    reference = JINA_V3[0].reference(folder)
    ids = [list(map(int, reference.token_ids(text, task="text-matching"))) for text in TEXTS]
    engine = LocalEngine(EngineConfig((ModelConfig(str(folder)),), placement="merged"))
    adapters = engine.adapters_of(0)
    assert {info.placement for info in adapters.values()} == {"merged"}
    handles = [BASE_MODEL, *(info.handle for info in adapters.values())]
    mixed = vectors(engine, ids, handles)
    for place, handle in enumerate(handles):
        alone = [vectors(engine, [each], [handle])[0, 0] for each in ids]
        assert mixed[:, place].tobytes() == np.stack(alone).tobytes()
    wanted = reference.embed(TEXTS, task="text-matching")
    assert cosines(mixed[:, 1 + list(adapters).index("text-matching")], wanted).min() > 0.99999
    arena = engine.runtime.models[0].registry._arena
    assert arena.num_used_bytes == sum(info.num_bytes for info in adapters.values())
    assert arena._free.used > 0, "factors of the words count too"
    for name in list(adapters):
        asyncio.run(engine.unload_adapter(0, name))
    assert (arena.num_used_bytes, arena.num_used_slots) == (0, 0)
    engine.close()
