"""The shapes of ModernBERT and GTE as their configs say them, in older and newer keys, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedmux.server.backbones import gte, modernbert
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.errors import ModelRejected

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 5, "intermediate_size": 96,
    "max_position_embeddings": 512,
}  # fmt: skip
F, S = "full_attention", "sliding_attention"
NEW = SIZES | {"model_type": "new", "rope_theta": 20000.0}


def modernbert_shape(folder: Path, **values: Any) -> modernbert.ModernBertShape:
    (folder / "config.json").write_text(json.dumps(SIZES | {"model_type": "modernbert"} | values))
    return modernbert.read_shape(ModelFolder(folder).config())


def gte_shape(folder: Path, **values: Any) -> gte.GteShape:
    (folder / "config.json").write_text(json.dumps(NEW | values))
    return gte.read_shape(ModelFolder(folder).config())


def test_modernbert_has_transformers_defaults(tmp_path: Path) -> None:
    shape = modernbert_shape(tmp_path)
    assert (shape.kinds, shape.window, shape.thetas) == ((F, S, S, F, S), 64, (160000.0, 10000.0))
    assert (shape.norm_eps, shape.activation, shape.has_norm_bias) == (1e-5, "geglu", False)


@pytest.mark.parametrize(
    "values",
    [
        {"global_attn_every_n_layers": 2, "global_rope_theta": 8e4, "local_rope_theta": 3e4},
        {
            "layer_types": [F, S, F, S, F],
            "rope_parameters": {F: {"rope_theta": 8e4, "rope_type": "default"}, S: {"rope_theta": 3e4}},
        },
    ],
)
def test_modernbert_reads_older_and_newer_keys(tmp_path: Path, values: dict[str, Any]) -> None:
    shape = modernbert_shape(tmp_path, local_attention=33, norm_eps=1e-6, layer_norm_eps=1e-2, **values)
    assert (shape.kinds, shape.thetas, shape.window, shape.norm_eps) == ((F, S, F, S, F), (8e4, 3e4), 16, 1e-6)


def test_a_null_local_theta_is_that_of_the_full_layers(tmp_path: Path) -> None:
    assert modernbert_shape(tmp_path, global_rope_theta=5e4, local_rope_theta=None).thetas == (5e4, 5e4)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"hidden_activation": "tanh"}, "hidden_activation"),
        ({"layer_types": [F, S]}, "layer_types"),
        ({"layer_types": [F, S, F, "chunked_attention", F]}, "layer_types"),
        ({"num_attention_heads": 7}, "hidden_size"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "type"),
        ({"rope_parameters": {F: {"rope_type": "yarn", "rope_theta": 1e4}}}, "rope_type"),
        ({"norm_eps": 0}, "norm_eps"),
    ],
)
def test_modernbert_refuses_what_it_does_not_compute(tmp_path: Path, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelRejected, match=rf"config\.json.*{key}"):
        modernbert_shape(tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "rotary"),
    [
        ({}, (20000.0, 1.0)),
        ({"rope_scaling": None}, (20000.0, 1.0)),
        ({"rope_scaling": {"type": "ntk", "factor": 8.0}}, (160000.0, 8.0 ** (2 / 16))),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, (5e5, 1.0)),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.6e5, "factor": 1.5}}, (1.6e5, 1.5)),
    ],
)
def test_gte_reads_its_rotary_settings(tmp_path: Path, values: dict[str, Any], rotary: tuple[float, float]) -> None:
    shape = gte_shape(tmp_path, **values)
    assert (shape.theta, shape.divisor) == rotary


def test_gte_puts_the_gate_before_up_and_packs_queries_keys_and_values(tmp_path: Path) -> None:
    shape = gte_shape(tmp_path, type_vocab_size=0)
    assert shape.num_types == 0
    linears = {linear.name: linear for linear in shape.linears}
    feed = "encoder.layer.4.mlp.up_gate_proj"
    assert linears[feed].parts == [(feed, 96, 96), (feed, 0, 96)]
    assert linears[feed].targets == {feed: (64, 192)}
    apart = {linear.name: linear for linear in gte_shape(tmp_path, pack_qkv=False).linears}
    attention = "encoder.layer.0.attention"
    assert linears[f"{attention}.qkv_proj"].targets == {f"{attention}.qkv_proj": (64, 192)}
    assert list(apart[f"{attention}.qkv_proj"].targets) == [f"{attention}.{part}_proj" for part in "qkv"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type"),
        ({"logn_attention_scale": True}, "logn_attention_scale"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.5}}, "mixed_b"),
        ({"rope_scaling": {"type": "ntk"}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
    ],
)
def test_gte_refuses_what_it_does_not_compute(tmp_path: Path, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelRejected, match=rf"config\.json.*{key}"):
        gte_shape(tmp_path, **values)
