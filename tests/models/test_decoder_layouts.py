"""The layout of checkpoints on decoders: files, tensor names, and the published sizes to the last byte."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_families import e5_mistral, gte_qwen2, jina_reranker_v3, jina_v5, qwen3_embedding, zembed
from model_families.decoder_layout import Shape, plan_of
from model_families.decoder_rerankers import FAMILIES as RERANKERS
from model_families.weights import Plan, bytes_of, header_of
from safetensors import safe_open

QWEN3, QWEN2 = qwen3_embedding.SHAPE, gte_qwen2.SHAPE
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
SENTENCE = {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"}
SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
LAYER = (
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
    "self_attn.v_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)  # fmt: skip
HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
LINEARS = [part for part in LAYER if "_proj" in part]


def count(plan: Plan) -> int:
    return sum(math.prod(recipe.shape) for recipe in plan.values())


def file_size(plan: Plan, dtype: torch.dtype, *, metadata: bool) -> int:
    return len(header_of(plan, dtype, metadata=metadata)) + bytes_of(plan, dtype)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def tensors_of(*paths: Path) -> dict[str, list[int]]:
    found = {}
    for path in paths:
        with safe_open(path, framework="pt") as tensors:
            found |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 - not a dict
    return found


def names(*extra: str, prefix: str = "", parts: tuple[str, ...] = LAYER) -> set[str]:
    """What a tiny decoder of three layers stores."""
    layers = {f"{prefix}layers.{i}.{part}" for i in range(3) for part in parts}
    return layers | {f"{prefix}embed_tokens.weight", f"{prefix}norm.weight", *extra}


@pytest.mark.parametrize(
    ("plan", "parameters"),
    [
        (plan_of(jina_v5.SMALL), 596_049_920),
        (plan_of(jina_v5.NANO), 211_766_016),
        (jina_v5.adapter_plan(jina_v5.SMALL), 20_185_088),
        (plan_of(QWEN3), 595_776_512),
        (plan_of(replace(QWEN3, layers=36, hidden=2560, heads=32, inner=9728, vocabulary=151665)), 4_021_774_336),
        (plan_of(replace(QWEN3, layers=36, hidden=4096, heads=32, inner=12288, vocabulary=151665)), 7_567_295_488),
        (plan_of(zembed.SHAPE), 4_022_468_096),
        (plan_of(e5_mistral.SHAPE), 7_110_660_096),
        (plan_of(QWEN2), 1_543_268_864),
        (plan_of(replace(QWEN2, hidden=3584, heads=28, kv_heads=4, inner=18944)), 7_069_121_024),
        (jina_reranker_v3.plan_with_projector(jina_reranker_v3.SHAPE), 596_836_352),
    ],
)
def test_full_shapes_have_the_published_number_of_parameters(plan: Plan, parameters: int) -> None:
    assert count(plan) == parameters


@pytest.mark.parametrize(
    ("plan", "dtype", "metadata", "size"),
    [
        (plan_of(jina_v5.SMALL), torch.bfloat16, False, 1_192_133_208),
        (plan_of(jina_v5.NANO), torch.bfloat16, False, 423_543_680),
        (jina_v5.adapter_plan(jina_v5.NANO), torch.bfloat16, False, 13_586_992),
        (zembed.projection_plan(2560), torch.float32, False, 17_472_456),
        (jina_reranker_v3.plan_with_projector(jina_reranker_v3.SHAPE), torch.bfloat16, True, 1_193_708_152),
    ],
    ids=["jina-v5-small", "jina-v5-nano", "jina-v5-nano adapter", "zembed-1 projections", "jina-reranker-v3.5"],
)
def test_names_give_the_published_size_of_the_file(plan: Plan, dtype: torch.dtype, metadata: bool, size: int) -> None:
    assert file_size(plan, dtype, metadata=metadata) == size


@pytest.mark.parametrize(("variant", "parts"), [("small", (*LAYER, *HEAD_NORMS)), ("nano", LAYER)])
def test_a_base_repository_of_jina(variant: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / variant
    jina_v5.build_base(folder, "tiny", 1, variant=variant)
    adapters = {
        f"adapters/{task}/{file}"
        for task in ("retrieval", "text-matching", "clustering", "classification")
        for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    settings = {"modules.json", "config_sentence_transformers.json"}
    assert files_of(folder) == {"config.json", "model.safetensors"} | TOKENIZER | settings | adapters
    assert set(tensors_of(folder / "model.safetensors")) == names(parts=parts)
    adapter = tensors_of(folder / "adapters/retrieval/adapter_model.safetensors")
    stems = [f"base_model.model.layers.{i}.{part.removesuffix('.weight')}" for i in range(3) for part in LINEARS]
    assert set(adapter) == {f"{stem}.lora_{side}.weight" for stem in stems for side in "AB"}
    assert {shape[0] for name, shape in adapter.items() if "lora_A" in name} == {32}
    assert b"__metadata__" not in (folder / "model.safetensors").read_bytes()[:4096]


def test_adapters_differ(tmp_path: Path) -> None:
    jina_v5.build_base(tmp_path / "nano", "tiny", 1, variant="nano")
    files = [(tmp_path / "nano/adapters" / task / "adapter_model.safetensors").read_bytes() for task in jina_v5.TASKS]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("variant", ["small", "nano"])
def test_a_merged_repository_has_the_keys_of_transformers_5(variant: str, tmp_path: Path) -> None:
    folder = tmp_path / variant
    jina_v5.build_merged(folder, "tiny", 1, variant=variant)
    assert files_of(folder) == {"config.json", "model.safetensors"} | TOKENIZER | SENTENCE
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == (3.5e6 if variant == "small" else 1e6)
    assert not {"rope_theta", "torch_dtype", "auto_map"} & set(config)


def test_qwen3_embedding_in_its_three_forms(tmp_path: Path) -> None:
    bare, sharded, headed = (tmp_path / family.name for family in qwen3_embedding.FAMILIES)
    for family in qwen3_embedding.FAMILIES:
        family.build(tmp_path / family.name, "tiny", 1)
    parts = (*LAYER, *HEAD_NORMS)
    assert files_of(bare) == {"config.json", "model.safetensors"} | TOKENIZER | SENTENCE
    assert set(tensors_of(bare / "model.safetensors")) == names(parts=parts)
    assert files_of(sharded) == {"config.json"} | SHARDS | TOKENIZER | SENTENCE
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names(prefix="model.", parts=parts)
    assert all(key in tensors_of(sharded / file) for key, file in index["weight_map"].items())
    found = tensors_of(*headed.glob("*.safetensors"))
    assert set(found) == names("lm_head.weight", prefix="model.", parts=parts)


def test_zembed_brings_its_chain_and_its_suffix(tmp_path: Path) -> None:
    zembed.build(tmp_path / "zembed-1", "tiny", 1)
    chain = {str(to): [2 * to, to] for to in (64, 32, 16, 8, 4, 2)}
    assert tensors_of(tmp_path / "zembed-1/projections.safetensors") == chain
    settings = json.loads((tmp_path / "zembed-1/config_sentence_transformers.json").read_text())
    assert settings["suffix"] == "<|im_end|>\n"
    assert settings["prompts"]["query"] == "<|im_start|>system\nquery<|im_end|>\n<|im_start|>user\n"


def test_biases_stand_on_queries_keys_and_values_alone(tmp_path: Path) -> None:
    gte_qwen2.build(tmp_path / "gte", "tiny", 1)
    found = tensors_of(*(tmp_path / "gte").glob("*.safetensors"))
    biases = {f"model.layers.{i}.self_attn.{part}_proj.bias" for i in range(3) for part in "qkv"}
    assert set(found) == names(*biases, prefix="model.")


def test_e5_mistral_names_its_prompts_in_its_own_way(tmp_path: Path) -> None:
    e5_mistral.build(tmp_path / "e5", "tiny", 1)
    settings = json.loads((tmp_path / "e5/config_sentence_transformers.json").read_text())
    assert {"web_search_query", "sts_query", "summarization_query", "bitext_query"} == set(settings["prompts"])
    processor = json.loads((tmp_path / "e5/tokenizer.json").read_text())["post_processor"]
    assert [part for part in processor["single"] if "SpecialToken" in part] == processor["single"][:1]  # no </s>
    assert json.loads((tmp_path / "e5/tokenizer_config.json").read_text())["add_eos_token"] is True


def test_rerankers_as_language_models_and_as_classifiers(tmp_path: Path) -> None:
    for family in RERANKERS:
        folder = tmp_path / family.name
        family.build(folder, "tiny", 1)
        found = tensors_of(*folder.glob("*.safetensors"))
        is_classifier = "score_negated" in family.mutants
        extra = {"score.weight"} if is_classifier else set()
        assert set(found) == names(*extra, prefix="model.", parts=(*LAYER, *HEAD_NORMS)), family.name
        assert (folder / "1_LogitScore/config.json").exists() == (not is_classifier)
        assert found.get("score.weight", [1])[0] == 1


def test_full_shapes_keep_their_sizes() -> None:
    assert replace(Shape().sized("full"), sharpness=3.0, branch=1.0) == Shape()
