"""``embedmux models``, ``embedmux doctor MODEL`` and ``embedmux convert``: folders looked at without serving them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedmux.server.checkpoint.families import FAMILIES

CONFIG = {
    "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "hidden_size": 8, "num_attention_heads": 2,
    "num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 514, "pad_token_id": 1,
    "vocab_size": 5, "type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BGE-M3 directory as published, without its weights: the heads are pickles."""
    found = tmp_path / "bge-m3"
    found.mkdir()
    write(found / "config.json", CONFIG)
    write(found / "tokenizer.json", {"model": {"type": "Unigram", "vocab": [[token, 0.0] for token in TOKENS]}})
    torch.save(torch.nn.Linear(8, 8).state_dict(), found / "colbert_linear.pt")
    torch.save(torch.nn.Linear(8, 1).state_dict(), found / "sparse_linear.pt")
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def test_every_family_is_listed_and_refusals_have_their_reason(run) -> None:
    listed = run("models").out
    assert all(family.name in listed for family in FAMILIES)
    assert "attends in both directions" in listed


def test_a_directory_is_shown_as_it_would_be_served(run, folder: Path) -> None:
    shown = run("models", str(folder))
    assert shown.code == 0
    assert "bge-m3 · backbone bert · 512 tokens · cls pooling · 8 dimensions" in shown.out
    assert "the directory's name: bge-m3" in shown.out
    assert "sparse_linear.pt is a pickle, which is never read at serving" in shown.out


def test_a_refusal_is_one_line(run, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    shown = run("models", str(folder))
    assert shown.code == 1
    assert "model 'bge-m3': tokenizer.json is missing" in shown.err


def test_converted_heads_are_served(run, folder: Path) -> None:
    pickled = torch.load(folder / "colbert_linear.pt", weights_only=True)
    converted = run("convert", str(folder))
    assert converted.code == 0
    assert "colbert_linear.safetensors: 2 tensors from colbert_linear.pt" in converted.out
    found = load_file(folder / "colbert_linear.safetensors")
    assert found.keys() == {"weight", "bias"}
    assert all(torch.equal(found[name], pickled[name]) for name in found)
    assert "dense, sparse, tokens" in run("models", str(folder)).out
    assert {path.name for path in folder.iterdir()} >= {"sparse_linear.safetensors", "sparse_linear.pt"}


def test_weights_that_share_memory_and_those_of_dense_modules_are_converted(run, folder: Path) -> None:
    words = torch.arange(6.0).view(2, 3)
    torch.save({"words": words, "head": words}, folder / "pytorch_model.bin")
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": words.T}, folder / "2_Dense" / "pytorch_model.bin")
    assert run("convert", str(folder)).code == 0
    assert torch.equal(load_file(folder / "model.safetensors")["head"], words)
    assert torch.equal(load_file(folder / "2_Dense" / "model.safetensors")["linear.weight"], words.T)


def test_files_that_are_there_are_left_alone(run, folder: Path) -> None:
    (folder / "colbert_linear.safetensors").write_bytes(b"mine")
    assert "colbert_linear.safetensors is there already" in run("convert", str(folder)).out
    assert (folder / "colbert_linear.safetensors").read_bytes() == b"mine"


class Harmful:
    """What a pickle can hold: a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_calls_something_is_refused_unrun(run, folder: Path) -> None:
    trace = folder / "trace"
    torch.save({"weight": Harmful(trace)}, folder / "colbert_linear.pt")
    refused = run("convert", str(folder))
    assert refused.code == 1
    assert "colbert_linear.pt: not read as plain weights" in refused.err
    assert not trace.exists()
    assert not (folder / "colbert_linear.safetensors").exists()


def test_a_pickle_of_something_else_is_refused(run, folder: Path) -> None:
    torch.save([torch.zeros(2)], folder / "colbert_linear.pt")
    refused = run("convert", str(folder))
    assert refused.code == 1
    assert "holds list, not named tensors" in refused.err


def test_a_folder_without_pickles_says_what_is_wanted(run, tmp_path: Path) -> None:
    refused = run("convert", str(tmp_path))
    assert refused.code == 1
    assert "holds none of colbert_linear.pt, sparse_linear.pt, pytorch_model.bin" in refused.err


def test_the_doctor_explains_why_a_model_is_refused(run, folder: Path) -> None:
    write(folder / "config.json", CONFIG | {"model_type": "mpnet"})
    looked = run("doctor", str(folder))
    assert looked.code == 1
    assert "model_type is 'mpnet'" in looked.out
    assert "1 fault" in looked.out


def test_the_doctor_compares_shapes_and_names_the_way_out_of_a_pickle(run, folder: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    looked = run("doctor", str(folder))
    assert looked.code == 1
    assert "embedmux convert" in looked.out
    save_file({"embeddings.word_embeddings.weight": torch.zeros(8, 4)}, folder / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in run("doctor", str(folder)).out


def test_the_doctor_finds_no_fault_with_the_default_model(run) -> None:
    looked = run("doctor", "minilm")
    assert looked.code == 0
    assert "tensors in whole files" in looked.out
