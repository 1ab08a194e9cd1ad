"""Every family as it is served equals its independent reference, and a folder with one thing wrong does not.

The same reference shows what is right and, by the mutants, that these tests can fail.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_families import ALL
from model_families.checks import DOCUMENTS, QUERIES, TEXTS, cosines, mutate
from model_families.family import Family, Reference
from model_families.samples import texts_of
from model_families.served import Served

from embedmux.server.errors import ModelRejected
from embedmux.server.records import BASE_MODEL, Tokens

SEED = random.SystemRandom().randrange(1 << 30)
EQUAL, SCORE_ERROR = 0.99999, 1e-4
DIFFERENT = 0.999
EMBEDDERS = [family for family in ALL if family.kind == "embedder"]
RERANKERS = [family for family in ALL if family.kind == "reranker"]


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


def ways(family: Family) -> list[dict[str, str | None]]:
    """Every task and role that the family has prompts or adapters for."""
    return [{"task": task, "role": role} for task in family.tasks for role in family.roles]


def worst_cosine(served: Served, reference: Reference, family: Family) -> float:
    """Over all tasks and roles."""
    return min(
        float(cosines(served.embed(TEXTS, **way), reference.embed(TEXTS, **way)).min())  # type: ignore[arg-type]
        for way in ways(family)
    )


@pytest.mark.parametrize(
    ("family", "served"), [(f, f) for f in EMBEDDERS], indirect=["served"], ids=map(name, EMBEDDERS)
)
def test_tokens_and_vectors_equal_the_reference(family: Family, served: Served, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    texts = texts_of(24, seed=SEED)
    for way in ways(family):
        wanted = [list(map(int, reference.token_ids(text, **way))) for text in texts]  # type: ignore[arg-type]
        assert served.token_ids(texts, **way) == wanted, way  # type: ignore[arg-type]
        if "dense" in family.outputs:
            found = served.embed(texts, **way)  # type: ignore[arg-type]
            worst = cosines(found, reference.embed(texts, **way)).min()  # type: ignore[arg-type]
            assert worst >= EQUAL, f"{way}: {worst}"
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "served"), [(f, f) for f in EMBEDDERS], indirect=["served"], ids=map(name, EMBEDDERS)
)
def test_a_text_has_the_same_bits_alone_in_a_batch_and_behind_a_shared_prefix(family: Family, served: Served) -> None:
    if "dense" not in family.outputs:
        pytest.skip("the family has no dense vectors; its token vectors are compared elsewhere")
    generator = random.Random(SEED)
    adapters = [BASE_MODEL, *(info.handle for info in served.engine.adapters_of(0).values())]
    prompt = served.token_ids([TEXTS[2]], **ways(family)[-1])[0][:20]  # type: ignore[arg-type]
    items = []
    for ids in served.token_ids(TEXTS, **ways(family)[-1]):  # type: ignore[arg-type]
        items.append((Tokens(ids, len(ids)), generator.choice(adapters)))
        items.append((Tokens([*prompt, *ids], len(ids) + len(prompt), shared=len(prompt)), generator.choice(adapters)))
    alone = [served.rows([Tokens(text.ids, text.original)], adapters=[adapter])[0] for text, adapter in items]
    assert len(set(alone)) == len(alone)
    for _ in range(3):
        chosen = generator.sample(range(len(items)), generator.randint(2, len(items)))
        rows = served.rows([items[i][0] for i in chosen], adapters=[items[i][1] for i in chosen])
        assert rows == [alone[i] for i in chosen]


@pytest.mark.parametrize(
    ("family", "served"), [(f, f) for f in RERANKERS], indirect=["served"], ids=map(name, RERANKERS)
)
def test_scores_equal_the_reference(family: Family, served: Served, folders: dict[str, Path]) -> None:
    reference = family.reference(folders[family.name])
    documents = texts_of(12, seed=SEED, longest=200)
    for query in QUERIES:
        wanted = np.asarray(reference.score(query, documents), dtype=np.float64)
        found = served.score(query, documents)
        assert np.abs(found - wanted).max() <= SCORE_ERROR
        assert np.ptp(wanted) > 100 * SCORE_ERROR, "scores that hardly differ show nothing"


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL, ids=name)
def test_one_thing_wrong_is_noticed(family: Family, folders: dict[str, Path], tmp_path: Path) -> None:
    right = folders[family.name]
    reference = family.reference(right)
    for mutant in family.mutants:
        wrong = mutate(family, mutant, right, tmp_path / mutant)
        try:
            served = Served(wrong)
        except ModelRejected:
            continue  # refused by name, which is even better
        with served:
            if family.kind == "reranker":
                changes = [np.abs(served.score(q, DOCUMENTS) - reference.score(q, DOCUMENTS)).max() for q in QUERIES]
                assert max(changes) > 10 * SCORE_ERROR, mutant
                continue
            worst = worst_cosine(served, reference, family)
            if worst >= EQUAL:  # served rightly all the same, such as an end that every text is given: nobody else's is
                worst = worst_cosine(served, family.reference(wrong), family)
            assert worst < DIFFERENT, f"{mutant}: {worst}"
