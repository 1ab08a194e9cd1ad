"""ModernBERT's checkpoints: their layout, what the references read of a text, and that mutants differ."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import modern_colbert, modernbert, modernbert_rerankers
from model_families.checks import TEXTS, cosines, evenness, mutate, spread
from model_families.family import Family, Role
from model_families.files import edit_json
from model_families.modernbert_layout import weight_plan
from safetensors import safe_open
from sentence_transformers import CrossEncoder
from transformers import ModernBertModel

from embedmux.server.checkpoint.read import read_contract
from embedmux.server.errors import ModelRejected

SEED = 3
DENSE = [*modernbert.FAMILIES, *modernbert_rerankers.FAMILIES]
LATE = modern_colbert.FAMILIES[0]
# Parameters by model, as the hub counts them.
PARAMETERS = [
    (modernbert.GTE, 149_014_272),
    (modernbert.ENGLISH, 149_014_272),
    (modernbert.SMALL, 47_662_464),
    (modernbert.MULTILINGUAL_97M, 97_441_152),
    (modernbert.MULTILINGUAL_311M, 311_664_384),
]
LAYER = (
    "attn_norm.weight", "attn.Wqkv.weight", "attn.Wo.weight", "mlp_norm.weight", "mlp.Wi.weight", "mlp.Wo.weight",
)  # fmt: skip
FILES = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
}  # fmt: skip


def name(family: Family) -> str:
    return family.name


def named(wanted: str) -> Family:
    return next(family for family in (*DENSE, LATE) if family.name == wanted)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    root = tmp_path_factory.mktemp("modernbert")
    for family in (*DENSE, LATE):
        family.build(root / family.name, "tiny", SEED)
    return {family.name: root / family.name for family in (*DENSE, LATE)}


def tensors_of(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as tensors:
        return {key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 - not a dict


def test_an_embedder_holds_the_published_files_and_tensors(folders: dict[str, Path]) -> None:
    folder = folders["gte-modernbert-base"]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    names = {f"layers.{i}.{part}" for i in range(4) for part in LAYER} - {"layers.0.attn_norm.weight"}
    names |= {"embeddings.tok_embeddings.weight", "embeddings.norm.weight", "final_norm.weight"}
    assert set(tensors_of(folder / "model.safetensors")) == names


def test_a_reranker_has_its_backbone_behind_a_prefix_and_a_head_beside_it(folders: dict[str, Path]) -> None:
    found = tensors_of(folders["granite-embedding-reranker-english-r2"] / "model.safetensors")
    heads = {key for key in found if not key.startswith("model.")}
    assert heads == {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}
    assert found["classifier.weight"] == [1, 64]


def test_a_pylate_folder_has_a_projection_and_two_more_tokens(folders: dict[str, Path]) -> None:
    folder = folders[LATE.name]
    assert tensors_of(folder / "1_Dense" / "model.safetensors") == {"linear.weight": [128, 64]}
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in added[-2:]] == ["[Q] ", "[D] "]


@pytest.mark.parametrize(("published", "count"), PARAMETERS, ids=list(map(name, modernbert.FAMILIES)))
def test_the_full_size_has_the_published_number_of_parameters(published: modernbert.Published, count: int) -> None:
    plan = weight_plan(published, published.vocabulary)
    assert sum(math.prod(recipe.shape) for recipe in plan.values()) == count


def test_the_newer_config_keys_say_what_the_older_ones_say(folders: dict[str, Path], tmp_path: Path) -> None:
    right = folders["granite-embedding-311m-multilingual-r2"]
    wanted = ModernBertModel.from_pretrained(right).config
    copy = tmp_path / "older"
    copy.mkdir()
    values = json.loads((right / "config.json").read_text())
    del values["layer_types"], values["rope_parameters"]
    values |= {"global_attn_every_n_layers": 3, "global_rope_theta": 150000.0, "local_rope_theta": 160000.0}
    (copy / "config.json").write_text(json.dumps(values))
    found = type(wanted).from_pretrained(copy)
    assert (found.layer_types, found.rope_parameters) == (wanted.layer_types, wanted.rope_parameters)


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("gte-modernbert-base", ("[CLS]", "[SEP]")),
        ("granite-embedding-97m-multilingual-r2", ("<|cls|>", "<|sep|>")),
        ("granite-embedding-311m-multilingual-r2", ("<bos>",)),
    ],
)
def test_a_text_stands_between_the_familys_own_tokens(
    folders: dict[str, Path], family: str, ends: tuple[str, ...]
) -> None:
    reference = modernbert.EmbedderReference(folders[family])
    tokens = reference.model.tokenizer.convert_ids_to_tokens(reference.token_ids("river mountain"))
    assert tokens == [ends[0], "river", "Ġmountain", *ends[1:]]


def test_runs_of_spaces_are_tokens_of_their_own(folders: dict[str, Path]) -> None:
    reference = modernbert.EmbedderReference(folders["gte-modernbert-base"])
    tokens = reference.model.tokenizer.convert_ids_to_tokens(reference.token_ids("river   mountain"))
    assert tokens == ["[CLS]", "river", "   ", "mountain", "[SEP]"]


@pytest.mark.parametrize("family", modernbert.FAMILIES, ids=name)
def test_vectors_spread_and_attention_is_peaked(family: Family, folders: dict[str, Path]) -> None:
    reference = modernbert.EmbedderReference(folders[family.name])
    assert spread(reference.embed(TEXTS)) < 0.9
    model = ModernBertModel.from_pretrained(folders[family.name], attn_implementation="eager", dtype=torch.float32)
    ids = torch.tensor([reference.token_ids(max(TEXTS, key=len))])
    with torch.inference_mode():
        found = model(ids, output_attentions=True).attentions
    assert evenness([layer.numpy() for layer in found]) < 0.7


@pytest.mark.parametrize("family", modernbert_rerankers.FAMILIES, ids=name)
def test_the_rerankers_reference_is_sentence_transformers_raw_logit(family: Family, folders: dict[str, Path]) -> None:
    settings = {"attn_implementation": "eager", "dtype": torch.float64}
    model = CrossEncoder(str(folders[family.name]), device="cpu", model_kwargs=settings)
    pairs = [("river mountain coffee", text) for text in TEXTS]
    found = model.predict(pairs, batch_size=1, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    wanted = family.reference(folders[family.name]).score("river mountain coffee", TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(wanted) > 1


@pytest.mark.parametrize("role", LATE.roles)
def test_pylates_steps_give_the_ids_that_sentence_transformers_reads(role: Role, folders: dict[str, Path]) -> None:
    reference = modern_colbert.LateReference(folders[LATE.name])
    prompt = modern_colbert.PREFIXES[role]
    for text in TEXTS:
        read = reference.model[0].preprocess([text], prompt=prompt, task=role)["input_ids"][0].tolist()
        assert reference.token_ids(text, role=role) == read


def test_queries_have_32_vectors_and_documents_none_for_punctuation(folders: dict[str, Path]) -> None:
    reference = modern_colbert.LateReference(folders[LATE.name])
    assert reference.tokens("river mountain", "query").shape == (32, 128)
    assert len(reference.tokens("river, mountain.", "document")) == len(reference.tokens("river mountain", "document"))
    ids = reference.token_ids("river mountain", role="query")
    words = [reference.tokenizer.id_to_token(token) for token in ids]
    assert words[:5] == ["[CLS]", "[Q] ", "river", "Ġmountain", "[SEP]"]
    assert set(words[5:]) == {"[MASK]"}


def test_mask_tokens_see_a_query_and_are_not_seen(folders: dict[str, Path], tmp_path: Path) -> None:
    right = modern_colbert.LateReference(folders[LATE.name])
    model = right.model[0].auto_model
    ids = right.token_ids("river mountain", role="query")
    with torch.inference_mode():
        alone = right.model[1].linear(model(torch.tensor([ids[:5]])).last_hidden_state[0])
    projected = torch.nn.functional.normalize(alone, dim=-1).numpy()
    np.testing.assert_allclose(right.tokens("river mountain", "query")[:5], projected, atol=1e-6)
    seen = modern_colbert.LateReference(mutate(LATE, "mask tokens are seen", folders[LATE.name], tmp_path / "seen"))
    assert cosines(seen.tokens("river mountain", "query")[:5], projected).min() < 0.999


def test_mask_tokens_behind_the_window_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[LATE.name], tmp_path / "long")
    edit_json(folder / "config_sentence_transformers.json", lambda values: values.update(query_length=33))
    assert read_contract(folder).late is not None
    edit_json(folder / "config_sentence_transformers.json", lambda values: values.update(query_length=34))
    with pytest.raises(ModelRejected, match=r"34 tokens .* reach 32"):
        read_contract(folder)
