"""BERT's and XLM-RoBERTa's checkpoints: their layout, what the references read of a text, and that mutants differ."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import bert_embedders, bge_m3, encoder_rerankers, xlm_roberta_embedders
from model_families.checks import QUERIES, TEXTS, cosines, evenness, spread
from model_families.encoder_layout import Layout
from model_families.encoder_reference import EncoderReference, PairReference
from model_families.encoder_weights import EncoderShape
from model_families.family import Family
from safetensors import safe_open
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoTokenizer

SEED = 3
DENSE = (*bert_embedders.FAMILIES, *xlm_roberta_embedders.FAMILIES, *bge_m3.FAMILIES)
RERANKERS = encoder_rerankers.FAMILIES
FAMILIES = (*DENSE, *RERANKERS)
SETTINGS = {"attn_implementation": "eager", "dtype": torch.float64}
# Parameters by layout and true shape, as the hub or MTEB count them; those of GTE and MiniLM include position_ids.
PARAMETERS = [
    (bert_embedders.E5_V2, bert_embedders.BASE, 109_482_240),
    (bert_embedders.MINILM, EncoderShape(6, 384, 12, 1536, 512, 2, 30522), 22_713_216),
    (bert_embedders.GTE, bert_embedders.BASE, 109_482_240),
    (xlm_roberta_embedders.ME5_SMALL, EncoderShape(12, 384, 12, 1536, 512, 2, 250037), 117_653_760),
    (xlm_roberta_embedders.ME5_BASE, EncoderShape(12, 768, 12, 3072, 514, 1, 250002), 278_043_648),
    (xlm_roberta_embedders.ME5_LARGE, xlm_roberta_embedders.LARGE, 559_890_432),
    (bge_m3.LAYOUT, bge_m3.FULL, 567_754_752),
]
BERT_FILES = {
    "README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt",
}  # fmt: skip
SENTENCE_FILES = {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"}
LAYER = tuple(
    f"{part}.{kind}"
    for part in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )
    for kind in ("weight", "bias")
)  # fmt: skip
EMBEDDINGS = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight",
              "LayerNorm.weight", "LayerNorm.bias")  # fmt: skip


def name(family: Family) -> str:
    return family.name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    root = tmp_path_factory.mktemp("encoders")
    for family in FAMILIES:
        family.build(root / family.name, "tiny", SEED)
    return {family.name: root / family.name for family in FAMILIES}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def tensors_of(folder: Path) -> dict[str, str]:
    """Name -> dtype."""
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118 - not a dict


def encoder_names(prefix: str, layers: int) -> set[str]:
    names = {f"{prefix}embeddings.{part}" for part in EMBEDDINGS}
    return names | {f"{prefix}encoder.layer.{layer}.{part}" for layer in range(layers) for part in LAYER}


def json_of(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_e5_has_no_file_of_prompts_but_a_pooler_and_position_ids(folders: dict[str, Path]) -> None:
    folder = folders["e5-base-v2"]
    assert files_of(folder) == BERT_FILES | SENTENCE_FILES
    more = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert set(tensors_of(folder)) == encoder_names("", 2) | more
    assert tensors_of(folder)["embeddings.position_ids"] == "I64"


def test_gte_and_the_instruct_model_are_stored_in_half_precision(folders: dict[str, Path]) -> None:
    kinds = tensors_of(folders["gte-base"])
    assert kinds.pop("embeddings.position_ids") == "I64"
    assert set(kinds.values()) == set(tensors_of(folders["multilingual-e5-large-instruct"]).values()) == {"F16"}
    assert set(tensors_of(folders["bge-m3"]).values()) == {"F32"}


def test_arctic_brings_its_query_prompt_and_no_pooler(folders: dict[str, Path]) -> None:
    folder = folders["snowflake-arctic-embed-m"]
    assert files_of(folder) == BERT_FILES | SENTENCE_FILES | {"config_sentence_transformers.json"}
    assert set(tensors_of(folder)) == encoder_names("", 2)
    assert json_of(folder / "config_sentence_transformers.json")["prompts"] == {
        "query": "Represent this sentence for searching relevant passages: "
    }
    newer = folders["snowflake-arctic-embed-l-v2.0"]
    assert json_of(newer / "config_sentence_transformers.json")["prompts"] == {"query": "query: "}


def test_rerankers_have_their_encoder_behind_a_prefix(folders: dict[str, Path]) -> None:
    head = {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
    assert set(tensors_of(folders["bge-reranker-v2-m3"])) == encoder_names("roberta.", 2) | head
    head = {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    assert set(tensors_of(folders["ms-marco-MiniLM-L6-v2"])) == encoder_names("bert.", 3) | head


def test_bge_m3_as_published_holds_pickles_alone(tmp_path: Path) -> None:
    bge_m3.build(tmp_path / "bge-m3", "tiny", SEED)
    bge_m3.as_published(tmp_path / "bge-m3")
    found = {path for path in files_of(tmp_path / "bge-m3") if path.endswith((".bin", ".pt", ".safetensors"))}
    assert found == {"pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"}


@pytest.mark.parametrize(("layout", "shape", "count"), PARAMETERS, ids=[entry[0].name for entry in PARAMETERS])
def test_the_true_size_has_the_published_number_of_parameters(layout: Layout, shape: EncoderShape, count: int) -> None:
    assert sum(math.prod(recipe.shape) for recipe in layout.plan(shape).values()) == count


def test_a_query_of_each_family_reads_so(folders: dict[str, Path]) -> None:
    def tokens(family: str, role: str | None) -> list[str]:
        reference = next(each for each in DENSE if each.name == family).reference(folders[family])
        ids = reference.token_ids("river", role=role)  # type: ignore[arg-type]
        return [reference.tokenizer.id_to_token(id) for id in ids]  # type: ignore[attr-defined]

    assert tokens("all-MiniLM-L6-v2", None) == ["[CLS]", "river", "[SEP]"]
    assert tokens("e5-base-v2", "query") == ["[CLS]", "query", ":", "river", "[SEP]"]
    assert tokens("e5-base-v2", "document") == ["[CLS]", "passage", ":", "river", "[SEP]"]
    assert tokens("multilingual-e5-small", "document") == ["<s>", "▁passage", ":", "▁river", "</s>"]
    assert tokens("bge-base-en-v1.5", "query")[:4] == ["[CLS]", "represent", "this", "sentence"]
    assert tokens("bge-base-en-v1.5", "document") == ["[CLS]", "river", "[SEP]"]
    assert tokens("bge-m3", "query") == ["<s>", "▁river", "</s>"]
    assert tokens("snowflake-arctic-embed-l-v2.0", "query") == ["<s>", "▁query", ":", "▁river", "</s>"]


def test_the_instruct_template_keeps_the_space_behind_query(folders: dict[str, Path]) -> None:
    reference = xlm_roberta_embedders.InstructReference(folders["multilingual-e5-large-instruct"])
    assert reference.prompt("query", "Find the river") == "Instruct: Find the river\nQuery: "
    with_space, without = (reference.tokenizer.encode(f"Query:{space}river").ids for space in (" ", ""))
    assert with_space != without


def test_a_pair_has_two_separators_in_xlm_roberta_and_two_types_in_bert(folders: dict[str, Path]) -> None:
    roberta, bert = PairReference(folders["bge-reranker-base"]), PairReference(folders["ms-marco-MiniLM-L6-v2"])
    pair = [roberta.tokenizer.id_to_token(id) for id in roberta.pair_ids("river", "stone")]
    assert pair == ["<s>", "▁river", "</s>", "</s>", "▁stone", "</s>"]
    assert bert.pair_types("river fire", "stone") == [0, 0, 0, 0, 1, 1]
    for reference in (roberta, bert):
        there, back = reference.score("river", ["stone bridge"]), reference.score("stone bridge", ["river"])
        assert abs(float(there[0] - back[0])) > 0.01, "the order must show"


@pytest.mark.parametrize("family", DENSE, ids=name)
def test_the_reference_is_sentence_transformers(family: Family, folders: dict[str, Path]) -> None:
    model = SentenceTransformer(str(folders[family.name]), device="cpu", model_kwargs=SETTINGS)
    reference = family.reference(folders[family.name])
    assert isinstance(reference, EncoderReference)
    role = family.roles[0]
    found = [model.encode(reference.prompt(role) + text, prompt="", show_progress_bar=False) for text in TEXTS]
    wanted = reference.embed(TEXTS, role=role)
    assert cosines(np.stack(found), wanted).min() > 1 - 1e-12
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1.0)


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_transformers_reads_the_same_tokens(family: Family, folders: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[family.name])
    reference = family.reference(folders[family.name])
    for text in TEXTS:
        if family.kind == "reranker":
            assert tokenizer(QUERIES[0], text)["input_ids"] == reference.pair_ids(QUERIES[0], text)
        else:
            # all-MiniLM's tokenizer.json would cut and pad to 128.
            assert tokenizer(text, truncation=False, padding=False)["input_ids"] == reference.token_ids(text)


@pytest.mark.parametrize("family", RERANKERS, ids=name)
def test_the_rerankers_reference_is_sentence_transformers_raw_logit(family: Family, folders: dict[str, Path]) -> None:
    model = CrossEncoder(str(folders[family.name]), device="cpu", model_kwargs=SETTINGS)
    names_identity = family.name.startswith("ms-marco")
    assert isinstance(model.activation_fn, torch.nn.Identity if names_identity else torch.nn.Sigmoid)
    pairs = [(QUERIES[0], text) for text in TEXTS]
    found = model.predict(pairs, batch_size=1, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(found, family.reference(folders[family.name]).score(QUERIES[0], TEXTS), atol=1e-9)


@pytest.mark.parametrize("family", DENSE, ids=name)
def test_vectors_spread_and_attention_is_peaked(family: Family, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    assert isinstance(reference, EncoderReference)
    assert spread(reference.embed(TEXTS)) < 0.9
    ids = torch.tensor([reference.token_ids(max(TEXTS, key=len))])
    with torch.inference_mode():
        found = reference.model(input_ids=ids, output_attentions=True).attentions
    assert evenness([layer.numpy() for layer in found]) < 0.7
