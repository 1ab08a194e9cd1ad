"""EmbeddingGemma's published layout, its tokens, and what its configuration means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_families.checks import evenness
from model_families.gemma import FAMILIES, PROMPTS, GemmaReference
from model_families.module_files import edit_config
from model_families.samples import texts_of
from safetensors import safe_open

from embedmux.server.backbones.gemma import read_shape
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.errors import ModelRejected

(FAMILY,) = FAMILIES
LAYER = (
    *(f"self_attn.{part}_proj" for part in "qkvo"), "self_attn.q_norm", "self_attn.k_norm",
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    *(f"{part}_layernorm" for part in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma") / FAMILY.name
    FAMILY.build(path, "tiny", 1)
    return path


def shape_with(folder: Path, tmp_path: Path, **values: object) -> object:
    """What the backbone reads from the config with some values changed; None takes a key away."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    edit_config(lambda config: config.update(values))(tmp_path)
    return read_shape(ModelFolder(tmp_path).config())


def test_the_layout_is_the_published_one(folder: Path) -> None:
    wanted = {f"layers.{i}.{name}.weight" for i in range(7) for name in LAYER}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == wanted | {"embed_tokens.weight", "norm.weight"}
    for name in ("2_Dense", "3_Dense"):
        with safe_open(folder / name / "model.safetensors", "pt") as file:
            assert list(file.keys()) == ["linear.weight"]
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "modules.json", "1_Pooling", "2_Dense", "3_Dense", "tokenizer.json",
        "sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json",
        "special_tokens_map.json",
    }  # fmt: skip


def test_bos_prompt_text_eos_and_no_space_before_the_first_word(folder: Path) -> None:
    reference = GemmaReference(folder)
    tokens = reference.tokenizer.encode(PROMPTS["document"] + "river").tokens
    assert tokens[0] == "<bos>" and tokens[-2:] == ["▁river", "<eos>"]
    assert reference.tokenizer.encode("river stone").tokens == ["<bos>", "river", "▁stone", "<eos>"]
    assert reference.token_ids("river", role="document") == reference.tokenizer.encode("title: none | text: river").ids


def test_the_library_s_tokenizer_reads_the_same(folder: Path) -> None:
    reference = GemmaReference(folder)
    for text in texts_of(28, seed=3, longest=60):
        assert reference.model.tokenizer(text)["input_ids"] == reference.token_ids(text), text


def test_attention_is_far_from_even(folder: Path) -> None:
    reference = GemmaReference(folder)
    ids = torch.tensor([reference.token_ids(texts_of(4, seed=2)[3])])
    with torch.inference_mode():
        found = reference.model[0].auto_model(ids, output_attentions=True).attentions
    assert evenness([layer[0].numpy() for layer in found]) < 0.8


def test_half_the_window_is_seen_on_each_side(folder: Path) -> None:
    reference = GemmaReference(folder)
    ids = torch.tensor([reference.token_ids(texts_of(4, seed=2, longest=200)[1])])
    with torch.inference_mode():
        sliding, *_, full, _ = reference.model[0].auto_model(ids, output_attentions=True).attentions
    shape = read_shape(ModelFolder(folder).config())
    row = ids.shape[1] // 2
    reach = [int((row - seen[0]).abs()) for seen in sliding[0, 0, row].nonzero()]
    assert max(reach) == shape.window == 24
    assert full[0, 0, row].count_nonzero() == ids.shape[1]
    assert shape.is_sliding == (True, True, True, True, True, False, True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_bidirectional_attention": False}, "use_bidirectional_attention is False"),
        ({"use_bidirectional_attention": None}, "use_bidirectional_attention is None"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_type is 'linear'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_is_not_computed_is_refused(folder: Path, tmp_path: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(ModelRejected, match=said):
        shape_with(folder, tmp_path, **values)


def test_newer_and_older_keys_say_the_same(folder: Path, tmp_path: Path) -> None:
    bases = {"full_attention": 1000000.0, "sliding_attention": 10000.0}
    newer = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in bases.items()}
    changed = shape_with(
        folder, tmp_path, rope_parameters=newer, rope_theta=None, rope_local_base_freq=None, layer_types=None
    )
    assert changed == read_shape(ModelFolder(folder).config())
