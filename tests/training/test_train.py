"""A few steps on a tiny random BERT: the folder loads in PEFT again and gives the same vectors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from embedmux.training.calibrate import calibrate, calibration_texts
from embedmux.training.command import calibrate_command, train_command, write_all
from embedmux.training.config import RECIPES, TrainingConfig
from embedmux.training.evaluate import unit
from embedmux.training.lora import trainable
from embedmux.training.split import load_splits
from embedmux.training.train import TrainedAdapter, train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def config_for(task: str, model: Path, data: Path) -> TrainingConfig:
    return TrainingConfig(
        task=task,
        model=str(model),
        data=data,
        rank=4,
        alpha=8,
        steps=4,
        batch_size=16,
        learning_rate=5e-3,
        prompts=RECIPES[task].prompts,
        anchor=RECIPES[task].anchor,
        check_every=2,
    )


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def trained(tiny_model: Path, data: Path) -> TrainedAdapter:
    return train(config_for("retrieval", tiny_model, data), console=quiet())


@pytest.fixture(scope="module")
def folder(trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    write_all(trained, out)
    return out


@pytest.mark.parametrize("task", ["text-matching", "classification", "clustering"])
def test_every_task_trains_and_keeps_its_best_check(task: str, tiny_model: Path, data: Path) -> None:
    result = train(config_for(task, tiny_model, data), console=quiet())
    assert [check.step for check in result.checks] == [0, 2, 4]
    assert result.best.score == max(check.score for check in result.checks)


def test_the_same_seed_gives_the_same_weights(trained: TrainedAdapter, tiny_model: Path, data: Path) -> None:
    again = train(config_for("retrieval", tiny_model, data), console=quiet())
    assert again.checks == trained.checks
    for one, other in zip(trainable(trained.adapter), trainable(again.adapter), strict=True):
        assert torch.equal(one.half(), other.half())


def test_the_folder_loads_in_peft_and_gives_the_same_vectors(
    folder: Path, trained: TrainedAdapter, tiny_model: Path
) -> None:
    backbone = SentenceTransformer(str(tiny_model), device="cpu")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_model), str(folder)).eval()
    features = backbone.preprocess(["query: cat dog", "query: sun"])
    with torch.no_grad():
        hidden = loaded(**{name: features[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    mask = features["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    expected = trained.encoder.encode(["query: cat dog", "query: sun"])
    np.testing.assert_allclose(unit(pooled.numpy()), expected, atol=1e-5)


def test_the_folder_holds_what_the_server_reads(folder: Path, tiny_model: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "calibration.safetensors",
        "config_sentence_transformers.json",
        "task.json",
    ]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 6 * 2  # A and B of six linear layers in two blocks; the pooler has none
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert tensors["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"].shape == (4, 32)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model.name
    assert str(tiny_model.parent) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert json.loads((folder / "task.json").read_text()) == {"task": "retrieval"}
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "query: ", "document": "document: "}


def test_ranges_are_the_extremes_of_cut_and_normalised_vectors(data: Path) -> None:
    def embed(texts: list[str], *, task: str | None, role: str | None) -> np.ndarray:
        rows = [[len(text), text.count("a") - 1.0, *([1.0] * 64), *([0.5] * 30)] for text in texts]
        return unit(np.array(rows, np.float32))

    texts = calibration_texts([split.train for split in load_splits("retrieval", data)], seed=1, num_texts=60)
    assert {text.role for text in texts} == {"query", "document"}
    ranges = calibrate(texts, embed, task="retrieval")
    assert {name: tuple(tensor.shape) for name, tensor in ranges.items()} == {"96": (2, 96), "64": (2, 64)}
    vectors = embed([text.text for text in texts], task=None, role=None)
    expected = unit(vectors[:, :64])
    np.testing.assert_allclose(ranges["64"][0], expected.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(ranges["64"][1], expected.max(axis=0), atol=1e-6)


def test_the_command_writes_a_card_with_scores(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    train_command(
        task="classification", data=data, out=tmp_path, model=str(tiny_model), rank=2, steps=2, batch_size=16,
        evaluate=True,
    )  # fmt: skip
    card = (tmp_path / "README.md").read_text()
    assert "| shops |" in card and "| mean |" in card
    assert "rank 2, alpha 4" in card
    assert str(tiny_model.parent) not in card


def test_the_bare_model_gets_ranges_from_the_texts_of_every_task(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    calibrate_command(data=data, out=tmp_path / "base", model=str(tiny_model))
    ranges = load_file(tmp_path / "base" / "calibration.safetensors")
    assert ranges["32"].shape == (2, 32) and ranges["32"].dtype == torch.float32
    assert bool((ranges["32"][0] < ranges["32"][1]).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "summaries"}, "task 'summaries' is not known"),
        ({"rank": 0}, "rank is 0, the least is 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, it must be above 0"),
        ({"anchor": -1.0}, "anchor is -1.0, the least is 0"),
        ({"batch_size": 2}, "batch_size is 2, contrastive batches need 4 or more"),
    ],
)
def test_settings_that_cannot_train_are_refused(change: dict[str, object], message: str) -> None:
    settings = {
        "task": "retrieval", "model": "minilm", "data": Path(), "rank": 4, "alpha": 8, "steps": 4,
        "batch_size": 16, "learning_rate": 1e-3, "prompts": {},
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)  # type: ignore[arg-type]
