"""What PEFT saves is read as PEFT computes it: the same modules, the same scale · B · A."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.server.adapters import peft_config, supported
from embedmux.server.adapters.directory import read_adapter, read_calibrations
from embedmux.server.errors import AdapterRejected
from embedmux.server.records import Adapter

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# transformers warns about a name that peft 0.21 still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ATTENTION = ["query", "key", "value"]
NAMES = [
    f"encoder.layer.{layer}.{name}"
    for layer in range(3)
    for name in ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense")
]


def bert_config(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **sizes, **changes)


def linears_of(model: torch.nn.Module, prefix: str) -> dict[str, tuple[int, int]]:
    """What a backbone publishes: the encoder's linears without the prefix, no pooler and no head."""
    return {
        name.removeprefix(prefix): (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(f"{prefix}encoder.")
    }


def save(folder: Path, model: torch.nn.Module, **options: Any) -> Any:
    """A PEFT model with random factors, saved to the folder."""
    tuned = peft.get_peft_model(model, peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    tuned.save_pretrained(folder)
    return tuned


def assert_same_deltas(adapter: Adapter, tuned: Any, prefix: str = "") -> None:
    wanted = {
        name.removeprefix(f"base_model.model.{prefix}"): module.get_delta_weight("default")
        for name, module in tuned.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert adapter.targets.keys() == wanted.keys()
    for name, update in adapter.targets.items():
        torch.testing.assert_close(update.scale * (update.b @ update.a), wanted[name].float())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ATTENTION},
        {"target_modules": ATTENTION, "r": 3, "lora_alpha": 7.5},
        {"target_modules": ATTENTION, "r": 6, "lora_alpha": 5, "use_rslora": True},
        {"target_modules": ["query", "intermediate.dense"], "rank_pattern": {"query": 2, "dense": 5}},
        {"target_modules": ATTENTION, "rank_pattern": {r"layer\.0\..*": 2, "query": 6}, "alpha_pattern": {"key": 3}},
        {"target_modules": ATTENTION, "rank_pattern": {"^encoder.layer.1.*query": 3}, "use_rslora": True},
        {"target_modules": ATTENTION, "alpha_pattern": {r"1\.attention\.self\.(query|key)": 3, "query": 9}},
        {"target_modules": r"encoder\.layer\.\d+\.attention\.self\.(query|value)"},
        {"target_modules": r".*0.*(query|output\.dense)"},
        {"target_modules": "all-linear", "exclude_modules": ["pooler.dense"]},
        {"target_modules": ["dense"], "exclude_modules": r"pooler.*|.*1\.output\.dense"},
        {"target_modules": ATTENTION, "layers_to_transform": [1]},
        {"target_modules": ATTENTION, "layers_to_transform": 0, "layers_pattern": "layer"},
        {"target_modules": ATTENTION, "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layer"]},
        {"target_modules": ATTENTION, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"target_modules": ATTENTION, "init_lora_weights": "orthogonal", "r": 4},
        {"target_modules": ATTENTION, "lora_alpha": 0},
        {"target_modules": ["encoder.layer.0.attention.self.query"]},
    ],
    ids=str,
)
def test_an_adapter_updates_what_peft_updates(tmp_path: Path, options: dict[str, Any]) -> None:
    model = transformers.BertModel(bert_config())
    linears = linears_of(model, "")
    tuned = save(tmp_path, model, **options)
    assert_same_deltas(read_adapter(tmp_path, linears, adapter_id="legal"), tuned)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("anchor", ["^bert.encoder.layer.0.*query", "^encoder.*query", "bert.encoder.layer.1.*"])
def test_patterns_see_the_prefix_of_a_model_with_a_head(tmp_path: Path, anchor: str) -> None:
    model = transformers.BertForSequenceClassification(bert_config())
    linears = linears_of(model, "bert.")
    tuned = save(tmp_path, model, target_modules=["query"], rank_pattern={anchor: 3}, r=5)
    assert_same_deltas(read_adapter(tmp_path, linears, adapter_id="legal"), tuned, "bert.")


@pytest.mark.parametrize("prefix", ["", "bert.", "base_model.model.0.auto_model.", "base_model.model.model."])
def test_known_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    model = transformers.BertModel(bert_config())
    linears = linears_of(model, "")
    tuned = save(tmp_path, model, target_modules=ATTENTION)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name.replace("base_model.model.", prefix): t for name, t in tensors.items()}, weights)
    assert_same_deltas(read_adapter(tmp_path, linears, adapter_id="legal"), tuned)


def test_a_bfloat16_adapter_is_read_exactly(tmp_path: Path) -> None:
    model = transformers.BertModel(bert_config()).to(torch.bfloat16)
    linears = linears_of(model, "")
    tuned = save(tmp_path, model, target_modules=ATTENTION)
    tuned.base_model.to(torch.bfloat16)
    tuned.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    adapter = read_adapter(tmp_path, linears, adapter_id="legal")
    a = stored["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"]
    assert a.dtype == torch.bfloat16
    assert torch.equal(adapter.targets["encoder.layer.0.attention.self.query"].a, a.float())


@pytest.mark.parametrize("start", [True, False, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_weights_alone_are_served(start: object) -> None:
    config = {
        "peft_type": "LORA",
        "target_modules": "all-linear",
        "init_lora_weights": start,
        "eva_config": {"rho": 2.0},
    }
    assert peft_config.parse(config, "adapter 'legal'").selects("anything")


def test_every_setting_of_the_installed_peft_is_known() -> None:
    settled = supported.INFORMATION | supported.READ | supported.REFUSED.keys()
    assert peft.LoraConfig().to_dict().keys() <= settled | supported.REFUSED_UNLESS_NULL.keys()


MODULES = st.sampled_from(
    ["query", "key", "self.query", "dense", "output.dense", "encoder.layer.1.intermediate.dense", "x"]
)
EXPRESSIONS = st.sampled_from(
    [
        ".*",
        "query",
        r".*\.(query|key)",
        r"encoder\.layer\.[02]\..*",
        "^encoder.*",
        r"layer.\d.*dense",
        "1.*",
        r".*\bdense",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    targets=st.lists(MODULES, min_size=1, max_size=3) | EXPRESSIONS,
    excludes=st.none() | st.lists(MODULES, max_size=2) | EXPRESSIONS,
    layers=st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lists=st.none() | st.sampled_from(["layer", "layers"]),
    ranks=st.dictionaries(MODULES | EXPRESSIONS, st.integers(1, 64), max_size=3),
    alphas=st.dictionaries(MODULES | EXPRESSIONS, st.integers(1, 64), max_size=3),
)
def test_selection_rank_and_alpha_agree_with_peft(
    targets: Any, excludes: Any, layers: Any, lists: Any, ranks: dict[str, int], alphas: dict[str, int]
) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists  # noqa: PLC0415
    from peft.utils.other import get_pattern_key  # noqa: PLC0415

    if isinstance(targets, str):
        layers = lists = None
    if layers is None:
        lists = None
    options = {"target_modules": targets, "exclude_modules": excludes, "rank_pattern": ranks, "alpha_pattern": alphas}
    options |= {"layers_to_transform": layers, "layers_pattern": lists, "r": 4, "lora_alpha": 6}
    theirs = peft.LoraConfig(**options)
    ours = peft_config.parse({"peft_type": "LORA", **options}, "adapter 'legal'")
    for name in NAMES:
        assert ours.selects(name) == bool(check_target_module_exists(theirs, name))
        rank = ranks.get(get_pattern_key(ranks.keys(), name), 4)
        assert ours.rank_of(name) == rank
        assert ours.scale_of(name) == alphas.get(get_pattern_key(alphas.keys(), name), 6) / rank


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, tuple[int, int]]]:
    model = transformers.BertModel(bert_config())
    linears = linears_of(model, "")
    save(tmp_path / "legal", model, target_modules=ATTENTION)
    return tmp_path / "legal", linears


def test_the_digest_follows_the_weights_and_nothing_else(saved: Any) -> None:
    folder, linears = saved
    first = read_adapter(folder, linears).digest
    weights = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(dict(reversed(tensors.items())), weights, metadata={"note": "other order"})
    moved = folder.rename(folder.with_name("moved"))
    assert read_adapter(moved, linears).digest == first
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    assert read_adapter(moved, linears).digest != first


def test_the_record_counts_what_it_holds(saved: Any) -> None:
    folder, linears = saved
    adapter = read_adapter(folder, linears)
    assert (adapter.id, adapter.max_rank, len(adapter.targets)) == ("legal", 8, 6)
    assert adapter.num_bytes == 6 * 4 * (8 * 32 + 32 * 8)
    assert (adapter.task, adapter.prompts, adapter.calibrations) == (None, {}, {})


def test_task_prompts_and_calibrations_are_read_from_beside(saved: Any) -> None:
    folder, linears = saved
    (folder / "task.json").write_text('{"task": "retrieval"}')
    prompts = {"query": "Query: ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts, "__version__": {}}))
    ranges = {"8": torch.tensor([[-1.0] * 8, [1.0] * 8]), "4": torch.zeros(2, 4)}
    safetensors.torch.save_file(ranges, folder / "calibration.safetensors")
    adapter = read_adapter(folder, linears)
    assert (adapter.task, adapter.prompts) == ("retrieval", prompts)
    assert sorted(adapter.calibrations) == [4, 8]
    assert torch.equal(adapter.calibrations[8].ranges, ranges["8"])
    assert len({calibration.id for calibration in adapter.calibrations.values()}) == 2
    assert all(len(calibration.id) == 12 for calibration in adapter.calibrations.values())


def test_the_bare_model_reads_its_calibration_alone(tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    assert read_calibrations(path, "base") == {}
    safetensors.torch.save_file({"4": torch.zeros(2, 4)}, path)
    assert read_calibrations(path, "base")[4].dimensions == 4
    path.write_bytes(b"x")
    with pytest.raises(AdapterRejected, match=r"^base: "):
        read_calibrations(path, "base")


def test_the_rank_limit_is_the_callers(saved: Any) -> None:
    folder, linears = saved
    assert read_adapter(folder, linears, max_rank=8).max_rank == 8
    with pytest.raises(AdapterRejected, match=r"rank 8, the limit is 7"):
        read_adapter(folder, linears, max_rank=7)
