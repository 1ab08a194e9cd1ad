"""Token vectors and sparse weights as they are served equal the references, and a folder with one thing wrong does not.

Every family that has such outputs is here; those that have dense vectors as well are also in test_parity.py.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import ALL, bge_m3, colbert
from model_families.checks import cosines, mutate
from model_families.colbert_reference import LateReference
from model_families.family import Family, Reference, Role, Vectors
from model_families.samples import queries_of, texts_of
from model_families.served import Served
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder

from embedmux.server.checkpoint.read import read
from embedmux.server.cli.convert import convert
from embedmux.server.errors import ModelRejected
from embedmux.server.records import Output

SEED = random.SystemRandom().randrange(1 << 30)
MUTANT_SEED = 1  # how clearly a mutant stands out depends on the weights
EQUAL, DIFFERENT, WEIGHT_ERROR = 0.99999, 0.999, 1e-4
SIDES: tuple[Role, ...] = ("query", "document")
LATE = [family for family in ALL if "tokens" in family.outputs and not family.is_refused]
# What a query may hold besides its special tokens, and what a document may.
TEXTS: dict[Role, list[str]] = {
    "query": [*queries_of(6, seed=5), "river", "Hello, world!", "a.b (c) - [MASK]"],
    "document": [*texts_of(8, seed=6, longest=150), "river", "Hello, world!", string.punctuation, "fire [MASK] stone"],
}


def name(family: Family) -> str:
    return family.name


def worst_cosine(found: list[Vectors], wanted: list[Vectors]) -> float:
    """Of all tokens of all texts; -1 where texts have other numbers of vectors."""
    if any(one.shape != other.shape for one, other in zip(found, wanted, strict=True)):
        return -1.0
    return min(float(cosines(one, other).min()) for one, other in zip(found, wanted, strict=True))


def wanted_tokens(reference: Reference, side: Role) -> list[Vectors]:
    return [reference.tokens(text, side) for text in TEXTS[side]]


def worst_over_sides(served: Served, reference: Reference) -> float:
    return min(worst_cosine(served.tokens(TEXTS[side], side), wanted_tokens(reference, side)) for side in SIDES)


@pytest.mark.parametrize("family", LATE, ids=name)
def test_token_vectors_equal_the_reference(family: Family, tmp_path: Path) -> None:
    folder = tmp_path / family.name
    family.build(folder, "tiny", SEED)
    reference = family.reference(folder)
    with Served(folder) as served:
        for side in SIDES:
            ids = [list(map(int, reference.token_ids(text, role=side))) for text in TEXTS[side]]
            assert served.token_ids(TEXTS[side], role=side) == ids
            found, wanted = served.tokens(TEXTS[side], side), wanted_tokens(reference, side)
            assert [len(vectors) for vectors in found] == [len(vectors) for vectors in wanted]
            assert worst_cosine(found, wanted) >= EQUAL
            np.testing.assert_allclose(np.linalg.norm(np.concatenate(found), axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("family", LATE, ids=name)
def test_token_vectors_are_the_same_bits_alone_and_in_a_batch(family: Family, tmp_path: Path) -> None:
    family.build(tmp_path / family.name, "tiny", SEED)
    with Served(tmp_path / family.name) as served:
        for side in SIDES:
            together = served.tokens(TEXTS[side], side)
            for text, vectors in zip(TEXTS[side], together, strict=True):
                (alone,) = served.tokens([text], side)
                assert alone.tobytes() == vectors.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("family", [each for each in LATE if "dense" not in each.outputs], ids=name)
def test_one_thing_wrong_is_noticed(family: Family, tmp_path: Path) -> None:
    right = tmp_path / family.name
    family.build(right, "tiny", MUTANT_SEED)
    reference = family.reference(right)
    for mutant in family.mutants:
        wrong = mutate(family, mutant, right, tmp_path / mutant)
        worst = min(
            worst_cosine(wanted_tokens(family.reference(wrong), side), wanted_tokens(reference, side)) for side in SIDES
        )
        assert worst < DIFFERENT, f"{mutant} in the reference: {worst}"
        try:
            served = Served(wrong)
        except ModelRejected:
            continue  # refused by name, which is even better
        with served:
            assert worst_over_sides(served, reference) < DIFFERENT, mutant


@pytest.mark.parametrize("family", colbert.FAMILIES, ids=name)
def test_colberts_reference_is_sentence_transformers(family: Family, tmp_path: Path) -> None:
    folder = tmp_path / family.name
    family.build(folder, "tiny", SEED)
    if (folder / "0_Transformer").exists():  # its Dense class is one that only PyLate has
        for second in ("0_Transformer", "1_Dense", "modules.json", "config_sentence_transformers.json"):
            (folder / second).rename(tmp_path / second)
    settings = {"attn_implementation": "eager", "dtype": torch.float64}
    model = MultiVectorEncoder(str(folder), device="cpu", model_kwargs=settings).to(torch.float64)
    reference = family.reference(folder)
    for side, encode in zip(SIDES, (model.encode_query, model.encode_document), strict=True):
        found = [np.asarray(encode(text, show_progress_bar=False)) for text in TEXTS[side]]
        assert worst_cosine(found, wanted_tokens(reference, side)) > 1 - 1e-12


def test_a_query_has_its_marker_and_is_filled_up_with_masks(tmp_path: Path) -> None:
    family = colbert.FAMILIES[0]
    family.build(tmp_path / family.name, "tiny", SEED)
    reference = family.reference(tmp_path / family.name)
    assert isinstance(reference, LateReference)
    tokens = [reference.tokenizer.id_to_token(id) for id in reference.token_ids("river", role="query")]
    assert tokens == ["[CLS]", "[unused0]", "river", "[SEP]", *["[MASK]"] * 28]
    tokens = [reference.tokenizer.id_to_token(id) for id in reference.token_ids("river, fire", role="document")]
    assert tokens == ["[CLS]", "[unused1]", "river", ",", "fire", "[SEP]"]
    assert len(reference.tokens("river, fire", "document")) == 5
    assert len(reference.token_ids("river " * 400, role="document")) == 180


def test_the_copy_for_pylate_is_the_same_model(tmp_path: Path) -> None:
    family = next(each for each in colbert.FAMILIES if each.name == "answerai-colbert-small-v1")
    folder = tmp_path / family.name
    family.build(folder, "tiny", SEED)
    tensors, copy = load_file(folder / "model.safetensors"), load_file(folder / "0_Transformer" / "model.safetensors")
    assert {f"bert.{key}" for key in copy} == {
        key for key in tensors if key.startswith("bert.") and "pooler" not in key
    }
    assert all(torch.equal(tensor, tensors[f"bert.{key}"]) for key, tensor in copy.items())
    projection = load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"]
    assert torch.equal(projection, tensors["linear.weight"])


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BGE-M3."""
    folder = tmp_path_factory.mktemp("m3") / "bge-m3"
    bge_m3.build(folder, "tiny", SEED)
    return folder


def as_rows(weights: Iterable[dict[int, float]], size: int) -> Vectors:
    """[n, size] of token id -> weight."""
    return np.array([[found.get(token, 0.0) for token in range(size)] for found in weights])


def test_sparse_weights_equal_the_reference(m3: Path) -> None:
    reference = bge_m3.M3Reference(m3)
    texts = [*TEXTS["query"], *TEXTS["document"]]
    with Served(m3) as served:
        found = served.sparse(texts)
    wanted = [reference.sparse(text) for text in texts]
    size = reference.tokenizer.get_vocab_size()
    assert [set(row) for row in found] == [set(row) for row in wanted]
    np.testing.assert_allclose(as_rows(found, size), as_rows(wanted, size), atol=WEIGHT_ERROR)
    assert any(
        len(row) < len(set(reference.token_ids(text)) - reference.unused)
        for row, text in zip(wanted, texts, strict=True)
    )
    assert not any(reference.unused & set(row) for row in wanted)


@pytest.mark.parametrize("mutant", bge_m3.HEAD_MUTANTS)
def test_a_wrong_head_is_noticed(mutant: str, m3: Path, tmp_path: Path) -> None:
    output, edit = bge_m3.HEAD_MUTANTS[mutant]
    wrong = tmp_path / "bge-m3"
    bge_m3.build(wrong, "tiny", SEED)
    edit(wrong)
    reference = bge_m3.M3Reference(m3)
    with Served(wrong) as served:
        if output == "tokens":
            assert worst_over_sides(served, reference) < DIFFERENT
            return
        size, texts = reference.tokenizer.get_vocab_size(), TEXTS["document"]
        found, wanted = (as_rows(rows, size) for rows in (served.sparse(texts), map(reference.sparse, texts)))
        assert np.abs(found - wanted).max() > 100 * WEIGHT_ERROR


def test_bge_m3_as_published_is_served_once_it_is_converted(m3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bge-m3"
    bge_m3.build(folder, "tiny", SEED)
    bge_m3.as_published(folder)
    assert read(folder).contract.outputs == (Output.DENSE,), "pickles are not read at serving"
    with pytest.raises(ModelRejected, match=r"model\.safetensors"):
        Served(folder)
    convert(folder)
    reference = bge_m3.M3Reference(m3)
    with Served(folder) as served:
        assert cosines(served.embed(TEXTS["document"]), reference.embed(TEXTS["document"])).min() >= EQUAL
        assert worst_over_sides(served, reference) >= EQUAL
        assert [set(row) for row in served.sparse(["river fire"])] == [set(reference.sparse("river fire"))]
