"""Nomic BERT's published layout, what its two sets of keys say, and what cutting a vector means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_families.checks import cosines, evenness
from model_families.nomic import FAMILIES, NomicReference, edit_config
from model_families.samples import texts_of
from model_families.served import Served
from safetensors import safe_open
from transformers import AutoModel

from embedmux.server.backbones.nomic_bert import read_shape
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.errors import ModelRejected

V1, V15, ARCTIC = FAMILIES
LAYER = (
    "attn.Wqkv.weight", "attn.out_proj.weight", "mlp.fc11.weight", "mlp.fc12.weight", "mlp.fc2.weight",
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nomic") / V15.name
    V15.build(path, "tiny", 1)
    return path


def test_the_layout_is_the_published_one(folder: Path) -> None:
    first = {"emb_ln.weight", "emb_ln.bias"}
    first |= {f"embeddings.{name}_embeddings.weight" for name in ("word", "token_type")}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == first | {f"encoder.layers.{i}.{name}" for i in range(3) for name in LAYER}
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "modules.json", "1_Pooling", "sentence_bert_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    }  # fmt: skip


def test_prompts_and_special_tokens_stand_where_they_must(folder: Path) -> None:
    reference = NomicReference(folder)
    ids = reference.tokenizer.encode("search_query: river", add_special_tokens=False).ids
    assert reference.token_ids("river", role="query") == [101, *ids, 102]
    assert reference.token_ids("river") == [101, reference.tokenizer.token_to_id("river"), 102]


def test_transformers_reads_the_newer_keys_as_the_reference_does_the_older(folder: Path) -> None:
    reference = NomicReference(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.tensor([reference.token_ids(texts_of(4, seed=2)[1])])
    with torch.inference_mode():
        assert torch.equal(model(ids).last_hidden_state, reference.model(ids).last_hidden_state)


def test_attention_is_far_from_even(folder: Path) -> None:
    reference = NomicReference(folder)
    ids = torch.tensor([reference.token_ids(texts_of(4, seed=2)[3])])
    with torch.inference_mode():
        found = reference.model(ids, output_attentions=True).attentions
    assert evenness([layer[0].numpy() for layer in found]) < 0.8


def test_both_sets_of_keys_give_one_shape(tmp_path: Path, folder: Path) -> None:
    V1.build(tmp_path / "old", "tiny", 1)
    assert read_shape(ModelFolder(tmp_path / "old").config()) == read_shape(ModelFolder(folder).config())


def test_keys_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    V15.build(tmp_path / "model", "tiny", 1)
    edit_config(lambda config: config.update(rotary_emb_base=10000))(tmp_path / "model")
    with pytest.raises(ModelRejected, match="rotary_emb_base is 10000; it must be 1000"):
        read_shape(ModelFolder(tmp_path / "model").config())


def test_a_scaled_base_serves_no_text_longer_than_the_training_s(tmp_path: Path) -> None:
    V1.build(tmp_path / "model", "tiny", 1)
    assert read_shape(ModelFolder(tmp_path / "model").config()).max_positions == 8192
    edit_config(lambda config: config.update(rotary_scaling_factor=2))(tmp_path / "model")
    assert read_shape(ModelFolder(tmp_path / "model").config()).max_positions == 2048
    assert read_contract(tmp_path / "model").max_tokens == 2048


def test_cutting_without_the_layer_norm_is_another_vector(folder: Path) -> None:
    reference = NomicReference(folder)
    texts = texts_of(8, seed=3, longest=60)
    whole, cut = reference.embed(texts), reference.embed(texts, dimensions=32)
    assert cosines(whole[:, :32], cut).min() < 0.999
    centred = whole - whole.mean(1, keepdims=True)
    np.testing.assert_allclose(cosines(centred[:, :32], cut), 1.0, atol=1e-9)


def test_a_cut_vector_is_served_behind_the_layer_norm(folder: Path) -> None:
    reference = NomicReference(folder)
    texts = texts_of(8, seed=3, longest=60)
    with Served(folder) as served:
        whole = served.embed(texts, role="query")
        cut = served.embed(texts, role="query", dimensions=32, forces_dimensions=True)
    assert cosines(whole, reference.embed(texts, role="query")).min() > 0.99999
    assert cosines(cut, reference.embed(texts, role="query", dimensions=32)).min() > 0.99999
