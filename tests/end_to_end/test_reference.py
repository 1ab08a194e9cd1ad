"""Vectors equal those of sentence-transformers and PEFT; encodings equal numpy on the same vectors; prompts, spaces."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from end_to_end_adapters import RECIPES
from end_to_end_support import ODD_TEXTS, Served, cosines, text_of
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.server.errors import InvalidRequest, SpaceMismatch

WORST = {"float32": 0.99999, "bfloat16": 0.9995}
PROMPT = {"retrieval": "query: ", "clustering": "group: "}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """100 texts of 2 to 256 tokens, the model's limit."""
    generator = random.Random(11)
    lengths = [3, 4, 5, 255, 256, *(round(3 * 85 ** generator.random()) for _ in range(95 - len(ODD_TEXTS)))]
    return [*ODD_TEXTS, *(text_of(length, generator) for length in lengths)]


@pytest.fixture(scope="module")
def plain(model_folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """What sentence-transformers makes of the texts in float32, [n, 384]."""
    model = SentenceTransformer(str(model_folder), device="cpu")
    vectors: NDArray[np.float32] = model.encode(texts, batch_size=8, show_progress_bar=False)
    return vectors


@pytest.fixture(scope="module")
def mixed(texts: list[str]) -> list[Text]:
    """Texts of four tasks and none, in turn."""
    chosen = [text for text in texts if len(text.split()) < 60][:60]
    tasks = [None, *RECIPES]
    return [Text(text, task=tasks[i % 5], role="query" if i % 5 else None) for i, text in enumerate(chosen)]


@pytest.fixture(scope="module")
def adapted(model_folder: Path, adapter_root: Path, mixed: list[Text]) -> NDArray[np.float32]:
    """What PEFT makes of the mixed texts in float32, [n, 384]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    backbone = transformers.BertModel.from_pretrained(model_folder, add_pooling_layer=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an attribute's older name
        first, *others = RECIPES
        model = peft.PeftModel.from_pretrained(backbone, adapter_root / first, adapter_name=first)
        for name in others:
            model.load_adapter(adapter_root / name, adapter_name=name)
    model.eval()

    rows = []
    for start in range(0, len(mixed), 10):
        items = mixed[start : start + 10]
        prompted = [PROMPT.get(item.task or "", "") + item.text for item in items]
        batch = tokenizer(prompted, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch, adapter_names=[item.task or "__base__" for item in items]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(rows).numpy()


def test_vectors_equal_sentence_transformers(each_server: Served, texts: list[str], plain: NDArray[np.float32]) -> None:
    with each_server.client() as client:
        found = client.embed(texts)
        (model,) = client.info().models
    assert cosines(found.vectors, plain).min() >= WORST[model.dtype]
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1.0, atol=1e-5)


def test_a_batch_of_four_adapters_and_the_bare_model_equals_peft(
    each_server: Served,
    mixed: list[Text],
    adapted: NDArray[np.float32],
    texts: list[str],
    plain: NDArray[np.float32],
) -> None:
    with each_server.client(batch_size=len(mixed)) as client:
        found = client.embed(mixed)
        (model,) = client.info().models
    assert cosines(found.vectors, adapted).min() >= WORST[model.dtype]
    bare = cosines(found.vectors, plain[[texts.index(item.text) for item in mixed]])
    assert bare[0::5].min() >= WORST[model.dtype]
    for place, task in enumerate(RECIPES, start=1):
        assert bare[place::5].max() < 0.98, f"the adapter of {task} barely turns vectors"


@pytest.mark.parametrize("dimensions", [1, 7, 128, 383])
def test_fewer_dimensions_are_a_slice_of_length_one(client: Client, texts: list[str], dimensions: int) -> None:
    full = client.embed(texts[:20], task="text-matching").vectors.astype(np.float64)
    cut = client.embed(texts[:20], task="text-matching", dimensions=dimensions, force_dimensions=True)
    wanted = full[:, :dimensions] / np.linalg.norm(full[:, :dimensions], axis=1, keepdims=True)
    assert cut.dimensions == dimensions
    np.testing.assert_allclose(cut.vectors, wanted, atol=2e-7)


@pytest.mark.parametrize("dimensions", [384, 128])
@pytest.mark.parametrize("task", [None, "retrieval", "classification"])
def test_encodings_equal_numpy_on_the_float32_vectors(
    client: Client, adapter_root: Path, texts: list[str], task: str | None, dimensions: int
) -> None:
    asked: dict[str, Any] = {"task": task, "role": "document" if task else None, "dimensions": dimensions}
    asked["force_dimensions"] = True
    some = [text for text in texts if len(text.split()) < 100][:30]
    exact = client.embed(some, **asked).vectors
    np.testing.assert_array_equal(client.embed(some, **asked, encoding="float16").vectors, exact.astype("f2"))
    # bfloat16 is float32 rounded to nearest, ties to even, at the sixteenth bit.
    bits = exact.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    got = client.embed(some, **asked, encoding="bfloat16").vectors
    np.testing.assert_array_equal(got.view(np.uint32), rounded.astype(np.uint32))
    packed = np.packbits(exact > 0, axis=1)
    np.testing.assert_array_equal(client.embed(some, **asked, encoding="ubinary").vectors, packed)
    signed = (packed.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(client.embed(some, **asked, encoding="binary").vectors, signed)
    if task is None and dimensions == 128:
        return  # the bare model has ranges for its full size only
    ranges = safetensors.numpy.load_file(adapter_root / (task or "base") / "calibration.safetensors")[str(dimensions)]
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    codes = np.clip(np.floor((exact - ranges[0]) / steps), 0, 255)
    assert (codes == 0).any(), "some values should lie below the ranges"
    as_uint8 = client.embed(some, **asked, encoding="uint8")
    np.testing.assert_array_equal(as_uint8.vectors, codes.astype(np.uint8))
    as_int8 = client.embed(some, **asked, encoding="int8")
    np.testing.assert_array_equal(as_int8.vectors, (codes - 128).astype(np.int8))
    assert {space.calibration for space in as_int8.spaces if space} != {""}


def test_prompts_are_in_the_tokens_and_in_the_vectors(client: Client, model_folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    for task, role, prompt in (
        ("retrieval", "query", "query: "),
        ("retrieval", "document", "document: "),
        ("retrieval.query", None, "query: "),
        ("retrieval.passage", None, "document: "),
        ("clustering", None, "group: "),
        ("text-matching", None, ""),
        (None, None, ""),
    ):
        (read,) = client.tokenize("a red boat", task=task, role=role)
        assert read.prompt == prompt
        assert list(read.ids) == tokenizer(prompt + "a red boat")["input_ids"]
        applied = client.embed("a red boat", task=task, role=role)
        literal = client.embed(f"{prompt}a red boat", task="retrieval" if task and "." in task else task, prompt="")
        np.testing.assert_array_equal(applied.vectors, literal.vectors)
        assert applied.num_tokens[0] == len(read.ids)
    named = client.embed("a red boat", task="retrieval", prompt_name="document")
    np.testing.assert_array_equal(named.vectors, client.embed("a red boat", task="retrieval", role="document").vectors)


def test_query_and_document_share_a_space_and_tasks_do_not(client: Client) -> None:
    query = client.embed("how do plants eat", task="retrieval", role="query")
    document = client.embed("Leaves turn light into sugar.", task="retrieval", role="document")
    assert query.spaces == document.spaces
    assert query.similarity(document).shape == (1, 1)
    others = [client.embed("x", task=task) for task in ("text-matching", "classification", "clustering", None)]
    small: dict[str, Any] = {"dimensions": 128, "force_dimensions": True}
    others.append(client.embed("x", task="retrieval", role="query", **small))
    ids = {each.spaces[0].id for each in [query, *others] if each.spaces[0]}
    assert len(ids) == 6
    for other in others:
        with pytest.raises(SpaceMismatch) as refused:
            query.similarity(other)
        assert query.spaces[0].id in str(refused.value)
        assert other.spaces[0].id in str(refused.value)
    codes = [client.embed("x", task="classification", encoding=name, **small) for name in ("int8", "uint8")]
    with pytest.raises(InvalidRequest):
        codes[0].similarity(codes[1])


def test_the_server_says_what_it_serves(client: Client, adapter_root: Path) -> None:
    (model,) = client.info().models
    assert {task.name: task.adapter for task in model.tasks} == {name: name for name in RECIPES}
    assert set(model.kernels.values()) == {"csrc"}
    assert model.calibrated_dimensions == (384,)
    for adapter in client.adapters():
        recipe = RECIPES[adapter.id]
        config = json.loads((adapter_root / adapter.id / "adapter_config.json").read_text())
        assert (adapter.max_rank, adapter.prompts) == (config["r"], recipe.prompts or {})
        assert adapter.calibrated_dimensions == (128, 384)
