"""Weights are read whole, by name and shape, or the folder is refused by what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from embedmux.server.backbones import bert
from embedmux.server.backbones.targets import model_targets
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.check import check
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.errors import ModelRejected
from embedmux.server.models import find_model

CPU = torch.device("cpu")
QUERY = "encoder.layer.0.attention.self.query.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of one layer with MiniLM's tokenizer."""
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32
    )
    found = tmp_path / "tiny"
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(found)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(find_model("minilm") / name, found / name)
    return found


def load(folder: Path) -> None:
    LocalEngine(EngineConfig((ModelConfig(str(folder)),))).close()


def edited(folder: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_the_folder_is_served_as_it_is(folder: Path) -> None:
    load(folder)
    assert check(folder) == len(load_file(folder / "model.safetensors"))
    assert model_targets(folder)[QUERY.removesuffix(".weight")] == (32, 32)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused_by_its_name(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    for read in (load, check):
        with pytest.raises(ModelRejected, match=r"'tiny': model\.safetensors is broken or cut off"):
            read(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(QUERY), f"tensor '{QUERY}' is missing"),
        (
            lambda t: t.update({QUERY: torch.zeros(32, 31)}),
            rf"tensor '{QUERY}' is \[32, 31\], config.json says \[32, 32\]",
        ),
        (
            lambda t: t.update({"embeddings.LayerNorm.weight": torch.ones(31)}),
            r"tensor 'embeddings.LayerNorm.weight' is \[31\], config.json says \[32\]",
        ),
        (lambda t: t.update({"odd.one": torch.zeros(1)}), r"1 tensors are unknown, first \['odd.one'\]"),
        (lambda t: t.update({f"bert.{QUERY}": torch.zeros(32, 32)}), f"tensor '{QUERY}' is stored twice"),
        (lambda t: t.update({QUERY: torch.zeros(32, 32, dtype=torch.int8)}), f"tensor '{QUERY}' has dtype I8"),
    ],
    ids=["missing", "shape", "norm", "unknown", "twice", "dtype"],
)
def test_a_tensor_out_of_place_is_refused_by_its_name(
    folder: Path, edit: Callable[[Tensors], object], message: str
) -> None:
    edited(folder, edit)
    for read in (load, check):
        with pytest.raises(ModelRejected, match=message):
            read(folder)


def test_shards_are_read_and_a_missing_one_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {}
    for number, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        where |= dict.fromkeys(chosen, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    load(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ModelRejected, match=r"index.json names \['model-1.safetensors'\], which are not there"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {**where, QUERY: "../elsewhere.safetensors"}}))
    with pytest.raises(ModelRejected, match="names files outside the folder"):
        load(folder)
    index.write_text("[]")
    with pytest.raises(ModelRejected, match=r"cannot read model\.safetensors\.index\.json"):
        load(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelRejected, match=r"no model\.safetensors; other formats are not read"):
        load(folder)


def test_weights_come_in_the_dtype_asked_for_and_only_once(folder: Path) -> None:
    checkpoint = Checkpoint(folder, prefixes=bert.PREFIXES, device=CPU)
    stored = load_file(folder / "model.safetensors")[QUERY]
    taken = checkpoint.take(QUERY, (32, 32), torch.bfloat16)
    assert torch.equal(taken, stored.to(torch.bfloat16))
    with pytest.raises(ModelRejected, match="is missing"):
        checkpoint.take(QUERY, (32, 32))
    with pytest.raises(ModelRejected, match=r"\d+ tensors are unknown"):
        checkpoint.finish(bert.is_unused)
