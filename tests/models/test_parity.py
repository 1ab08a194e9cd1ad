"""Every family as it is served equals its independent reference, and a folder with one thing wrong does not.

The same reference shows what is right and, by the mutants, that these tests can fail. Token vectors have tests of their
own in test_late_interaction.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_families import ALL
from model_families.checks import LEAST_SCORE_CHANGE, cosines, mutate, outputs_of
from model_families.family import Family
from model_families.samples import queries_of, texts_of
from model_families.served import Served

from embedmux.server.errors import ModelRejected
from embedmux.server.records import BASE_MODEL, Tokens

SEED = random.SystemRandom().randrange(1 << 30)
MUTANT_SEED = 1  # the benchmark's: how clearly a mutant stands out depends on the weights
EQUAL, SCORE_ERROR = 0.99999, 1e-4
DIFFERENT = 0.999
REFUSED = [family for family in ALL if family.is_refused]
EMBEDDERS = [
    family for family in ALL if family.kind == "embedder" and "dense" in family.outputs and not family.is_refused
]
RERANKERS = [family for family in ALL if family.kind == "reranker"]
# One family of each layout meets all its mutants, the others two by chance; `make bench NAME=backbones` hunts them all.
WHOLLY = {
    "jina-embeddings-v5-text-small", "jina-embeddings-v5-text-nano-retrieval", "qwen3-embedding-0.6b", "zembed-1",
    "e5-mistral-7b-instruct", "qwen3-reranker-0.6b", "zerank-2", "jina-reranker-v3", "gte-modernbert-base",
    "granite-embedding-reranker-english-r2", "gte-base-en-v1.5", "gte-large-en-v1.5", "nomic-embed-text-v1.5",
    "embeddinggemma-300m", "jina-embeddings-v3", "e5-base-v2", "multilingual-e5-base", "bge-reranker-v2-m3",
    "ms-marco-MiniLM-L6-v2", "bge-m3",
}  # fmt: skip


def name(family: Family) -> str:
    return family.name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints by family, built when first asked for."""
    root = tmp_path_factory.mktemp(f"seed-{SEED}")

    class Built(dict[str, Path]):
        def __missing__(self, key: str) -> Path:
            found = next(family for family in ALL if family.name == key)
            found.build(root / key, "tiny", SEED)
            self[key] = root / key
            return self[key]

    return Built()


@pytest.fixture
def served(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[Served]:
    with Served(folders[request.param.name]) as found:
        yield found


def each(families: list[Family]) -> pytest.MarkDecorator:
    """A family and its checkpoint as it is served."""
    pairs = [(family, family) for family in families]
    return pytest.mark.parametrize(("family", "served"), pairs, indirect=["served"], ids=map(name, families))


def ways(family: Family) -> list[dict[str, str | None]]:
    """Every task and role that the family has prompts or adapters for."""
    return [{"task": task, "role": role} for task in family.tasks for role in family.roles]


@each(EMBEDDERS)
def test_tokens_and_vectors_equal_the_reference(family: Family, served: Served, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    texts = texts_of(24, seed=SEED)
    for turn, way in enumerate(ways(family)):
        wanted = [list(map(int, reference.token_ids(text, **way))) for text in texts]  # type: ignore[arg-type]
        assert served.token_ids(texts, **way) == wanted, way  # type: ignore[arg-type]
        some = texts if turn == 0 else texts[turn :: len(ways(family))]
        found = served.embed(some, **way)  # type: ignore[arg-type]
        worst = cosines(found, reference.embed(some, **way)).min()  # type: ignore[arg-type]
        assert worst >= EQUAL, f"{way}: {worst}"
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


@each(EMBEDDERS)
def test_a_text_has_the_same_bits_alone_in_a_batch_and_behind_a_shared_prefix(family: Family, served: Served) -> None:
    generator = random.Random(SEED)
    adapters = [BASE_MODEL, *(info.handle for info in served.engine.adapters_of(0).values())]
    texts, way = texts_of(8, seed=SEED, longest=300), ways(family)[-1]
    prompt = served.token_ids(texts[2:3], **way)[0][:20]  # type: ignore[arg-type]
    items = []
    for ids in served.token_ids(texts, **way):  # type: ignore[arg-type]
        items.append((Tokens(ids, len(ids)), generator.choice(adapters)))
        items.append((Tokens([*prompt, *ids], len(ids) + len(prompt), shared=len(prompt)), generator.choice(adapters)))
    alone = [served.rows([Tokens(text.ids, text.original)], adapters=[adapter])[0] for text, adapter in items]
    assert len(set(alone)) == len(alone)
    for _ in range(3):
        chosen = generator.sample(range(len(items)), generator.randint(2, len(items)))
        rows = served.rows([items[i][0] for i in chosen], adapters=[items[i][1] for i in chosen])
        assert rows == [alone[i] for i in chosen]


@each(RERANKERS)
def test_scores_equal_the_reference(family: Family, served: Served, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    documents = texts_of(8, seed=SEED, longest=200)
    for query in queries_of(2, seed=SEED):
        wanted = np.asarray(reference.score(query, documents), dtype=np.float64)
        found = served.score(query, documents)
        assert np.abs(found - wanted).max() <= SCORE_ERROR
        assert np.ptp(wanted) > 100 * SCORE_ERROR, "scores that hardly differ show nothing"


@pytest.mark.parametrize("family", REFUSED, ids=name)
def test_what_is_not_established_is_refused_by_name(family: Family, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelRejected, match=family.name):
        Served(folders[family.name])


@pytest.mark.slow
@pytest.mark.parametrize("family", EMBEDDERS + RERANKERS, ids=name)
def test_one_thing_wrong_is_noticed(family: Family, tmp_path: Path) -> None:
    right = tmp_path / family.name
    family.build(right, "tiny", MUTANT_SEED)
    wanted = outputs_of(family, family.reference(right))
    mutants = list(family.mutants)
    for mutant in mutants if family.name in WHOLLY else random.Random(SEED).sample(mutants, 2):
        wrong = mutate(family, mutant, right, tmp_path / mutant)
        try:
            served = Served(wrong)
        except ModelRejected:
            continue  # refused by name, which is even better
        with served:
            found = outputs_of(family, served)  # type: ignore[arg-type]
            if not is_another(family, found, wanted):
                # Served rightly all the same, such as an end that every text is given: then not as the folder says.
                assert is_another(family, found, outputs_of(family, family.reference(wrong))), mutant


def is_another(family: Family, found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    """Whether some text's score or vector is clearly not the one wanted."""
    if family.kind == "reranker":
        return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)) > LEAST_SCORE_CHANGE
    return min(float(cosines(a, b).min()) for a, b in zip(found, wanted, strict=True)) < DIFFERENT
