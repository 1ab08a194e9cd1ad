"""GTE's checkpoints: their layout, the published rule of their rotary positions, and that mutants differ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import gte, gte_rerankers
from model_families.checks import TEXTS, evenness, spread
from model_families.family import Family
from model_families.gte_layout import Published, load_native, weight_plan
from safetensors import safe_open
from transformers import GteModel

SEED = 4
FAMILIES = [*gte.FAMILIES, *gte_rerankers.FAMILIES]
# Parameters by model, as the hub counts them.
PARAMETERS = [
    (gte.BASE, 136_776_192), (gte.LARGE, 434_139_136), (gte.MULTILINGUAL, 305_368_320), (gte.ARCTIC, 305_368_320),
]  # fmt: skip
LAYER = (
    "attention.qkv_proj.weight", "attention.qkv_proj.bias", "attention.o_proj.weight", "attention.o_proj.bias",
    "mlp.up_gate_proj.weight", "mlp.down_proj.weight", "mlp.down_proj.bias",
    "attn_ln.weight", "attn_ln.bias", "mlp_ln.weight", "mlp_ln.bias",
)  # fmt: skip
EMBEDDINGS = ("word_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")


def name(family: Family) -> str:
    return family.name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    root = tmp_path_factory.mktemp("gte")
    for family in FAMILIES:
        family.build(root / family.name, "tiny", SEED)
    return {family.name: root / family.name for family in FAMILIES}


def tensors_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return set(tensors.keys())


def config_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize(
    ("family", "prefix", "more"),
    [
        ("gte-base-en-v1.5", "", set()),
        ("gte-large-en-v1.5", "", {"embeddings.token_type_embeddings.weight"}),
        (
            "gte-multilingual-base", "new.",
            {"new.embeddings.token_type_embeddings.weight", "classifier.weight", "classifier.bias"},
        ),
        ("snowflake-arctic-embed-m-v2.0", "", {"embeddings.token_type_embeddings.weight"}),
    ],
)  # fmt: skip
def test_a_folder_holds_the_published_tensors(
    folders: dict[str, Path], family: str, prefix: str, more: set[str]
) -> None:
    wanted = {f"{prefix}embeddings.{part}" for part in EMBEDDINGS}
    wanted |= {f"{prefix}encoder.layer.{i}.{part}" for i in range(3) for part in LAYER}
    assert tensors_of(folders[family]) == wanted | more


@pytest.mark.parametrize(("published", "count"), PARAMETERS)
def test_the_full_size_has_the_published_number_of_parameters(published: Published, count: int) -> None:
    plan = weight_plan(published, published.vocabulary)
    assert sum(math.prod(recipe.shape) for recipe in plan.values()) == count


def test_configs_name_code_of_their_own_except_transformers(folders: dict[str, Path]) -> None:
    kinds = {family: config_of(folder)["model_type"] for family, folder in folders.items()}
    assert [kinds[family.name] for family in FAMILIES] == ["new", "new", "new", "gte", "gte", "new"]
    assert "auto_map" not in config_of(folders["transformers-gte-multilingual-base"])
    assert config_of(folders["snowflake-arctic-embed-m-v2.0"])["unpad_inputs"] == "true"


@pytest.mark.parametrize(("family", "theta", "factor"), [
    ("gte-base-en-v1.5", 500000.0, 1.0), ("gte-large-en-v1.5", 160000.0, 2.0), ("gte-multilingual-base", 20000.0, 8.0),
    ("transformers-gte-multilingual-base", 20000.0, 8.0), ("snowflake-arctic-embed-m-v2.0", 160000.0, 1.0),
])  # fmt: skip
def test_the_references_frequencies_follow_the_published_rule(
    folders: dict[str, Path], family: str, theta: float, factor: float
) -> None:
    model = load_native(folders[family], GteModel)
    size = model.config.hidden_size // model.config.num_attention_heads
    base = theta * factor
    wanted = [base ** (-2 * i / size) / factor ** (2 / size) for i in range(size // 2)]
    np.testing.assert_allclose(model.rotary_emb.inv_freq.numpy(), wanted, rtol=1e-6)


def test_published_and_native_configs_give_the_same_vectors(folders: dict[str, Path]) -> None:
    published = gte.EmbedderReference(folders["gte-multilingual-base"]).embed(TEXTS)
    native = gte.EmbedderReference(folders["transformers-gte-multilingual-base"]).embed(TEXTS)
    np.testing.assert_allclose(published, native, atol=1e-5)


def test_the_up_half_stands_before_the_gate(folders: dict[str, Path]) -> None:
    """The published feed-forward: down(gelu(last half) * first half)."""
    folder = folders["gte-base-en-v1.5"]
    model = load_native(folder, GteModel)
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        up, gate = tensors.get_tensor("encoder.layer.0.mlp.up_gate_proj.weight").double().chunk(2)
        down = tensors.get_tensor("encoder.layer.0.mlp.down_proj.weight").double()
        bias = tensors.get_tensor("encoder.layer.0.mlp.down_proj.bias").double()
    x = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = (torch.nn.functional.gelu(x @ gate.T) * (x @ up.T)) @ down.T + bias
    with torch.inference_mode():
        torch.testing.assert_close(model.layers[0].mlp(x), wanted)


def test_a_prompt_is_read_with_queries_only(folders: dict[str, Path]) -> None:
    reference = gte.EmbedderReference(folders["snowflake-arctic-embed-m-v2.0"])
    plain = [reference.tokenizer.id_to_token(token) for token in reference.token_ids("river", role="document")]
    query = [reference.tokenizer.id_to_token(token) for token in reference.token_ids("river", role="query")]
    assert plain == ["<s>", "▁river", "</s>"]
    assert query == ["<s>", "▁query", ":", "▁river", "</s>"]


@pytest.mark.parametrize("family", gte.FAMILIES, ids=name)
def test_vectors_spread_and_attention_is_peaked(family: Family, folders: dict[str, Path]) -> None:
    reference = gte.EmbedderReference(folders[family.name])
    assert spread(reference.embed(TEXTS)) < 0.9
    ids = torch.tensor([reference.token_ids(max(TEXTS, key=len))])
    with torch.inference_mode():
        found = reference.model(ids, output_attentions=True).attentions
    assert evenness([layer.numpy() for layer in found]) < 0.7
