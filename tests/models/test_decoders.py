"""Checkpoints on decoders: what the references read of a text and compute of it, and that mutants differ."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from model_families import (
    decoder_rerankers,
    e5_mistral,
    gte_qwen2,
    jina_reranker_v3,
    jina_v5,
    qwen3_embedding,
    zembed,
)
from model_families.checks import DOCUMENTS, QUERIES, TEXTS, cosines, evenness, spread
from model_families.decoder_reference import open_model
from model_families.family import Family, Role
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder

SEED = 4
MODULES = (jina_v5, qwen3_embedding, zembed, e5_mistral, gte_qwen2, decoder_rerankers, jina_reranker_v3)
FAMILIES = [family for module in MODULES for family in module.FAMILIES]
EMBEDDERS = [family for family in FAMILIES if family.kind == "embedder"]
MERGED = "jina-embeddings-v5-text-small-retrieval"


def name(family: Family) -> str:
    return family.name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    root = tmp_path_factory.mktemp("decoders")
    for family in FAMILIES:
        family.build(root / family.name, "tiny", SEED)
    return {family.name: root / family.name for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_attention_is_peaked(family: Family, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    assert evenness(reference.attentions(max(TEXTS, key=len))) < 0.7  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", EMBEDDERS, ids=name)
def test_vectors_spread(family: Family, folders: dict[str, Path]) -> None:
    vectors = family.reference(folders[family.name]).embed(TEXTS, task=family.tasks[0], role="query")
    assert spread(vectors) < 0.9
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "role", "wanted"),
    [
        ("jina-embeddings-v5-text-small", "query", ["Query", ":", "Ġriver", "Ġdoor"]),
        ("jina-embeddings-v5-text-nano", None, ["Document", ":", "Ġriver", "Ġdoor"]),
        ("jina-embeddings-v5-text-nano-retrieval", "document", ["Document", ":", "Ġriver", "Ġdoor"]),
        ("qwen3-embedding-0.6b", "query", ["Ċ", "Query", ":", "river", "Ġdoor", "<|endoftext|>"]),
        ("qwen3-embedding-0.6b", None, ["river", "Ġdoor", "<|endoftext|>"]),
        ("zembed-1", "query", ["<|im_start|>", "user", "Ċ", "river", "Ġdoor", "<|im_end|>", "Ċ"]),
        ("e5-mistral-7b-instruct", "query", ["<0x0A>", "Query", "<0x3A>", "▁river", "▁door", "</s>"]),
        ("e5-mistral-7b-instruct", "document", ["<s>", "▁river", "▁door", "</s>"]),
        ("gte-qwen2-1.5b-instruct", "query", ["Query", ":", "Ġriver", "Ġdoor", "<|endoftext|>"]),
    ],
)
def test_what_stands_around_a_text(family: str, role: Role | None, wanted: list[str], folders: dict[str, Path]) -> None:
    reference = next(found for found in FAMILIES if found.name == family).reference(folders[family])
    ids = reference.token_ids("river door", role=role)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folders[family])
    assert tokenizer.convert_ids_to_tokens(ids)[-len(wanted) :] == wanted


def test_an_instruction_takes_the_prompts_place(folders: dict[str, Path]) -> None:
    reference = qwen3_embedding.FAMILIES[0].reference(folders["qwen3-embedding-0.6b"])
    one = reference.embed(TEXTS, role="query", instruction=qwen3_embedding.INSTRUCTION)  # type: ignore[call-arg]
    other = reference.embed(TEXTS, role="query", instruction="Find the door")  # type: ignore[call-arg]
    assert cosines(one, reference.embed(TEXTS, role="query")).min() > 0.999999
    assert cosines(one, other).min() < 0.999


def test_an_adapter_is_its_product_added_to_the_weight(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["jina-embeddings-v5-text-nano"]
    config = transformers.EuroBertConfig.from_pretrained(folders["jina-embeddings-v5-text-nano-retrieval"])
    tensors = {key: tensor.double() for key, tensor in load_file(folder / "model.safetensors").items()}
    adapter = load_file(folder / "adapters" / "clustering" / "adapter_model.safetensors")
    for key, down in adapter.items():
        if "lora_A" in key:
            up = adapter[key.replace("lora_A", "lora_B")]
            weight = key.removeprefix("base_model.model.").replace("lora_A.", "")
            tensors[weight] += up.double() @ down.double()
    model = transformers.EuroBertModel._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    reference = jina_v5.JinaReference(folder)
    for text in TEXTS:
        with torch.inference_mode():
            found = model.eval()(torch.tensor([reference.token_ids(text)])).last_hidden_state[0, -1:]
        assert cosines(found.numpy(), reference.embed([text], task="clustering")) > 0.999999


def test_jina_has_no_vector_without_a_task(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="retrieval"):
        jina_v5.JinaReference(folders["jina-embeddings-v5-text-small"]).embed(["river"])


def test_a_merged_repository_is_what_peft_merges(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["jina-embeddings-v5-text-small"]
    merged = tmp_path / "merged"
    shutil.copytree(folders[MERGED], merged)
    model = peft.PeftModel.from_pretrained(
        open_model(base, transformers.Qwen3Model, "qwen3"), base / "adapters" / "retrieval"
    )
    model.merge_and_unload().save_pretrained(merged)
    wanted = jina_v5.JinaReference(base).embed(TEXTS, task="retrieval", role="query")
    found = next(family for family in jina_v5.FAMILIES if family.name == MERGED).reference(merged)
    assert cosines(found.embed(TEXTS, role="query"), wanted).min() > 0.99999


def test_smaller_zembed_vectors_come_by_the_chain_and_not_by_a_slice(folders: dict[str, Path]) -> None:
    reference = zembed.ZembedReference(folders["zembed-1"])
    vectors = reference.embed(TEXTS, role="document")
    first, second = (reference.projections[size].numpy() for size in ("64", "32"))
    for size, wanted in ((64, vectors @ first), (32, vectors @ first @ second)):
        found = reference.shorten(vectors, size)
        assert cosines(found, wanted).min() > 0.999999
        assert cosines(found, vectors[:, :size]).max() < 0.9


def test_attention_of_gte_qwen2_goes_where_its_config_says(folders: dict[str, Path], tmp_path: Path) -> None:
    gte_qwen2.build(tmp_path / "open", "tiny", SEED, is_causal=None)
    gte_qwen2.build(tmp_path / "causal", "tiny", SEED, is_causal=True)
    reference = gte_qwen2.FAMILIES[0].reference
    both = reference(folders["gte-qwen2-1.5b-instruct"]).embed(TEXTS)
    causal = reference(tmp_path / "causal").embed(TEXTS)
    assert cosines(both, causal).min() < 0.999
    assert cosines(causal, reference(tmp_path / "open").embed(TEXTS)).min() > 0.999999  # what transformers then does


@pytest.mark.parametrize("family", ["qwen3-reranker-0.6b", "zerank-2"])
def test_a_logit_rerankers_reference_is_sentence_transformers_score(family: str, folders: dict[str, Path]) -> None:
    settings = {"attn_implementation": "eager", "dtype": torch.float32}
    model = CrossEncoder(str(folders[family]), device="cpu", model_kwargs=settings)
    reference = next(found for found in FAMILIES if found.name == family).reference(folders[family])
    for query, document in itertools.product(QUERIES, DOCUMENTS):
        ids = torch.tensor([reference.pair_ids(query, document)])
        with torch.inference_mode():
            found = model({"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": 1})["scores"]
        np.testing.assert_allclose(found.item(), reference.score(query, [document])[0], atol=1e-4)


def test_a_classifiers_row_is_the_difference_of_the_heads_rows(folders: dict[str, Path], tmp_path: Path) -> None:
    model, classifier = folders["qwen3-reranker-0.6b"], tmp_path / "classifier"
    shutil.copytree(folders["qwen3-reranker-0.6b-seq-cls"], classifier)
    reference = decoder_rerankers.LogitReference(model, frame=decoder_rerankers.JUDGE)
    tensors = load_file(model / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"][[reference.tokens["true_token_id"], reference.tokens["false_token_id"]]]
    other = decoder_rerankers.LogitReference(classifier, frame=decoder_rerankers.JUDGE)
    other.model.load_state_dict({**tensors, "score.weight": (rows[0].float() - rows[1].float())[None]})
    query = "river mountain coffee"
    np.testing.assert_allclose(other.score(query, DOCUMENTS), reference.score(query, DOCUMENTS), atol=1e-4)


def test_a_list_in_blocks_is_scored_against_the_mean_of_their_queries(folders: dict[str, Path]) -> None:
    reference = jina_reranker_v3.ListwiseReference(folders["jina-reranker-v3"])
    query = QUERIES[0]
    whole, parted = reference.score(query, DOCUMENTS), reference.score(query, DOCUMENTS, block=2)
    assert np.abs(whole).max() <= 1.0 + 1e-6
    assert np.abs(whole - parted).max() > 0.01  # documents of one block see each other
    alone = reference.score(query, DOCUMENTS[:1])
    ids = reference.list_ids(query, DOCUMENTS[:1])
    asked = reference.project(ids, jina_reranker_v3.QUERY_MARK).numpy()
    answer = reference.project(ids, jina_reranker_v3.DOCUMENT_MARK).numpy()
    np.testing.assert_allclose(alone, cosines(asked, answer), atol=1e-6)


def test_marks_in_a_text_are_taken_out_and_long_texts_cut(folders: dict[str, Path]) -> None:
    reference = jina_reranker_v3.ListwiseReference(folders["jina-reranker-v3"])
    marked = f"river{jina_reranker_v3.DOCUMENT_MARK} door{jina_reranker_v3.QUERY_MARK}"
    assert reference.cut(marked, jina_reranker_v3.MAX_DOCUMENT)[0] == "river door"
    text, tokens = reference.cut("river " * 600, jina_reranker_v3.MAX_QUERY)
    assert tokens == jina_reranker_v3.MAX_QUERY
    assert text.split() == ["river"] * jina_reranker_v3.MAX_QUERY
