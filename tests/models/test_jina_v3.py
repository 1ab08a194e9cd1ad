"""Jina v3's two layouts hold one model; its adapters become ordinary ones, words included, or are refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families.checks import evenness
from model_families.files import edit_json
from model_families.jina_colbert import FAMILIES as LATE_FAMILIES
from model_families.jina_v3 import FAMILIES, TASKS, JinaReference
from model_families.jina_v3_layout import ADAPTATIONS, PROMPTS
from model_families.samples import texts_of
from model_families.served import Served
from model_families.weights import edit_weights
from safetensors import safe_open

from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.adapters.stacked import read_stacked
from embedmux.server.backbones.jina_v3 import PREFIXES, WORDS, is_unused, read_shape
from embedmux.server.backbones.lookup import LoraLookup
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.errors import EmbedmuxError, ModelRejected
from embedmux.server.packed import LowRankTables, Segments
from embedmux.server.records import Adapter

STACKED, NATIVE = FAMILIES
(LATE,) = LATE_FAMILIES
MATRICES = ("mixer.Wqkv", "mixer.out_proj", "mlp.fc1", "mlp.fc2")
SPLIT = (*(f"self_attn.{part}_proj" for part in "qkv"), *MATRICES[1:])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("jina")
    for family in FAMILIES:
        family.build(root / family.name, "tiny", 1)
    return root / STACKED.name, root / NATIVE.name


def read(folder: Path) -> list[Adapter]:
    """The adapters of a folder, with the whole file accounted for."""
    model = ModelFolder(folder)
    shape = read_shape(model.config())
    checkpoint = Checkpoint(folder, prefixes=PREFIXES, device=torch.device("cpu"))
    found = read_stacked(checkpoint, model, shape.linears)
    checkpoint.finish(lambda name: ".lora_" not in name)
    return found


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_the_original_layout_is_the_published_one(folders: tuple[Path, Path]) -> None:
    layers = [f"roberta.encoder.layers.{i}" for i in range(3)]
    changed = [f"roberta.embeddings.{name}_embeddings" for name in ("word", "token_type")]
    changed += ["roberta.pooler.dense", *(f"{layer}.{name}" for layer in layers for name in MATRICES)]
    wanted = {
        f"{name}.parametrizations.weight.{part}" for name in changed for part in ("original", "0.lora_A", "0.lora_B")
    }
    wanted |= {f"{name}.bias" for name in changed[2:]}
    norms = ["roberta.emb_ln", *(f"{layer}.{norm}" for layer in layers for norm in ("norm1", "norm2"))]
    assert names_in(folders[0] / "model.safetensors") == wanted | {
        f"{norm}.{part}" for norm in norms for part in ("weight", "bias")
    }


def test_the_layout_for_transformers_is_the_published_one(folders: tuple[Path, Path]) -> None:
    assert not any("lora" in name for name in names_in(folders[1] / "model.safetensors"))
    embeddings = [f"roberta.embeddings.{name}_embeddings" for name in ("word", "token_type")]
    linears = ["roberta.pooler.dense", *(f"roberta.encoder.layers.{i}.{name}" for i in range(3) for name in SPLIT)]
    for task in ("retrieval_query", "retrieval_passage", "separation", "classification", "text_matching"):
        assert names_in(folders[1] / task / "adapter_model.safetensors") == {
            *(f"{name}.lora_embedding_{letter}" for name in embeddings for letter in "AB"),
            *(f"{name}.lora_{letter}.weight" for name in linears for letter in "AB"),
        }


def test_prompts_are_the_tasks_own(folders: tuple[Path, Path]) -> None:
    reference = JinaReference(folders[0])
    prompt = reference.tokenizer.encode(PROMPTS["retrieval.query"], add_special_tokens=False).ids
    (word,) = reference.tokenizer.encode("river", add_special_tokens=False).ids
    assert reference.token_ids("river", task="retrieval", role="query") == [0, *prompt, word, 2]
    assert reference.token_ids("river", task="clustering", role="query") == [0, word, 2]


def test_attention_is_far_from_even_in_every_task(folders: tuple[Path, Path]) -> None:
    reference = JinaReference(folders[0])
    ids = torch.tensor([reference.token_ids(texts_of(4, seed=2)[3])])
    for adaptation in (None, *ADAPTATIONS):
        with torch.inference_mode():
            found = reference.model(adaptation)(ids, output_attentions=True).attentions
        assert evenness([layer[0].numpy() for layer in found]) < 0.8, adaptation


def test_both_layouts_are_one_model(folders: tuple[Path, Path]) -> None:
    stacked, native = (JinaReference(folder) for folder in folders)
    texts = texts_of(6, seed=4, longest=80)
    for task in TASKS:
        found = [each.embed(texts, task=task, role="query") for each in (stacked, native)]
        np.testing.assert_array_equal(*found, err_msg=str(task))


def test_both_layouts_give_the_same_adapters(folders: tuple[Path, Path]) -> None:
    first, second = (read(folder) for folder in folders)
    assert [adapter.id for adapter in first] == list(ADAPTATIONS)
    assert [adapter.digest for adapter in first] == [adapter.digest for adapter in second]
    assert len({adapter.digest for adapter in first}) == len(ADAPTATIONS)
    for adapter in first:
        assert adapter.prompts == {adapter.id: PROMPTS[adapter.id]}
        assert adapter.max_rank == 5  # the words' four and the token type
        assert {update.scale for update in adapter.targets.values()} == {0.25}


def test_words_are_updated_alike_by_segment_and_by_token(folders: tuple[Path, Path]) -> None:
    shape = read_shape(ModelFolder(folders[0]).config())
    words = shape.linears[0]
    arena = AdapterArena(shape.linears, max_slots=6, max_bytes=1 << 22, dtype=torch.float32, device="cpu")
    arena.data.fill_(float("nan"))  # what no adapter wrote must not be read
    adapters = read(folders[0])
    slots = [arena.place(adapter) for adapter in adapters]
    lookup = LoraLookup(words, low_rank=LowRankTables(arena.data, arena.tables), max_rank=shape.lookup_rank)
    ids = torch.randint(shape.vocab_size, (40,), generator=torch.Generator().manual_seed(3))
    offsets = torch.tensor([0, 7, 7, 20, 31, 40], dtype=torch.int32)
    segments = Segments(offsets, torch.tensor([slots[3], slots[0], -1, slots[1], slots[4]], dtype=torch.int32))
    found = lookup.by_token(ids, segments)
    assert torch.equal(found, lookup.by_segment(ids, segments))
    assert not found[7:20].any()
    update = adapters[4].targets[WORDS]
    wanted = (update.scale * update.b.double() @ update.a.double())[:, ids[31:]].T
    torch.testing.assert_close(found[31:].double(), wanted, rtol=1e-5, atol=1e-7)
    with_words_alone = update.b[:, :4].double() @ update.a[:4].double()
    assert (wanted - update.scale * with_words_alone[:, ids[31:]].T).abs().max() > 1e-4


def _edit_file(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder / name, edit)  # type: ignore[arg-type]


TYPE_A = "roberta.embeddings.token_type_embeddings.parametrizations.weight.0.lora_A"
QUERY = "retrieval_query/adapter_model.safetensors"
K_PROJ = "roberta.encoder.layers.1.self_attn.k_proj.lora_A.weight"


def _drop_layer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["roberta.encoder.layers.1.mlp.fc2.parametrizations.weight.0.lora_B"]


def _drop_task(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".lora_" in name]:
        tensors[name] = tensors[name][:4].clone()


def _fill_with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["roberta.encoder.layers.0.mlp.fc1.parametrizations.weight.0.lora_B"][2, 0] = float("nan")


@pytest.mark.parametrize(
    ("is_native", "edit", "said"),
    [
        (False, _edit_file("model.safetensors", _drop_layer), "encoder.layers.1.mlp.fc2.*lora_B' is missing"),
        (False, _edit_file("model.safetensors", _drop_task), r"word_embeddings.*lora_A' is \[4, \d+, 4\], config.json"),
        (False, _edit_file("model.safetensors", _fill_with_nan), "'separation'.*fc1' has NaN or infinity"),
        (False, _edit_file("model.safetensors", lambda t: t.pop(TYPE_A)), "token_type_embeddings.*lora_A' is missing"),
        (False, lambda f: edit_json(f / "config.json", lambda c: c.update(lora_rank=8)), "config.json says"),
        (True, lambda f: shutil.rmtree(f / "separation"), "model 'separation': adapter_config.json is missing"),
        (True, _edit_file(QUERY, lambda t: t.pop(K_PROJ)), "layers.1.self_attn.k_proj.lora_A.weight' is missing"),
        (True, _edit_file(QUERY, lambda t: t.update(other=torch.ones(2))), "1 tensors are unknown, first .'other'"),
        (True, _edit_file(QUERY, lambda t: t[K_PROJ].zero_()), "have different factors A"),
        (
            True,
            lambda f: edit_json(f / "separation/adapter_config.json", lambda c: c.update(lora_alpha=2)),
            "adapter 'separation': lora_alpha is 2, config.json of the model says 1",
        ),
        (
            True,
            lambda f: edit_json(f / "separation/adapter_config.json", lambda c: c.update(use_dora=True)),
            "use_dora is True",
        ),
    ],
)
def test_what_is_missing_left_over_or_odd_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, is_native: bool, edit: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folders[is_native], copy)
    edit(copy)
    with pytest.raises(EmbedmuxError, match=said):
        read(copy)


def test_a_model_without_tasks_has_no_adapters_and_no_lookup(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((folders[1] / "config.json").read_text())
    del config["lora_adaptations"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folders[1] / "model.safetensors", tmp_path)
    assert read(tmp_path) == []
    assert not any(linear.is_lookup for linear in read_shape(ModelFolder(tmp_path).config()).linears)
    assert is_unused("pooler.dense.weight") and not is_unused("encoder.layers.0.mlp.fc1.weight")


def test_the_late_model_without_its_markers_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / LATE.name
    LATE.build(folder, "tiny", 1)
    assert read_contract(folder).late is not None
    (folder / "artifact.metadata").unlink()
    with pytest.raises(ModelRejected, match=r"query_token_id is None; it must be a token.*'\[unused0\]' is not"):
        read_contract(folder)


def test_its_adapters_come_back_by_their_ids_after_unloading(folders: tuple[Path, Path]) -> None:
    texts = texts_of(4, seed=9, longest=40)
    for folder in folders:
        with Served(folder) as served:
            before = served.embed(texts, task="clustering")
            asyncio.run(served.engine.unload_adapter(0, "separation"))
            assert "separation" not in served.engine.adapters_of(0)
            info = asyncio.run(served.engine.load_adapter(0, "separation", "separation"))
            assert info.id == "separation" and info.num_targets == 13
            np.testing.assert_array_equal(served.embed(texts, task="clustering"), before)
