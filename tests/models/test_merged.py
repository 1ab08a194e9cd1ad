"""Merged adapters in a causal model with shared prompts: the same bits in any batch, near the low-rank ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_families import jina_v5
from model_families.checks import cosines
from model_families.samples import texts_of
from model_families.served import Served

from embedmux.server.records import BASE_MODEL, Tokens

NAME, SEED = "jina-embeddings-v5-text-small", 11
TASKS = ("retrieval", "classification")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny Jina v5, two of its adapters loaded a second time, merged."""
    folder: Path = tmp_path_factory.mktemp("merged") / NAME
    next(family for family in jina_v5.FAMILIES if family.name == NAME).build(folder, "tiny", SEED)
    with Served(folder, dtype=request.param) as opened:
        for task in TASKS:
            asyncio.run(opened.engine.load_adapter(0, task, f"{task}-merged", "merged"))
        yield opened


def test_texts_have_the_same_bits_alone_in_a_batch_and_behind_a_shared_prefix(served: Served) -> None:
    generator = random.Random(SEED)
    adapters = [BASE_MODEL, *(info.handle for info in served.engine.adapters_of(0).values())]
    texts = texts_of(10, seed=SEED, longest=200)
    prompt = served.token_ids(texts[2:3], task="retrieval", role="query")[0][:20]
    items = []
    for ids in served.token_ids(texts, task="retrieval", role="query"):
        items.append((Tokens(ids, len(ids)), generator.choice(adapters)))
        for adapter in generator.sample(adapters, 3):
            items.append((Tokens([*prompt, *ids], len(ids) + len(prompt), shared=len(prompt)), adapter))
    alone = [served.rows([Tokens(text.ids, text.original)], adapters=[adapter])[0] for text, adapter in items]
    assert len(set(alone)) == len(alone)
    for _ in range(8):
        chosen = generator.sample(range(len(items)), generator.randint(2, len(items)))
        rows = served.rows([items[i][0] for i in chosen], adapters=[items[i][1] for i in chosen])
        assert rows == [alone[i] for i in chosen]


def test_merged_vectors_are_near_the_low_rank_ones(served: Served) -> None:
    handles = {name: info.handle for name, info in served.engine.adapters_of(0).items()}
    ids = served.token_ids(texts_of(12, seed=SEED), task="retrieval", role="document")
    tokens = [Tokens(text, len(text)) for text in ids]
    dtype = served.engine.models[0].dtype

    def vectors(handle: int) -> np.ndarray:
        rows = served.rows(tokens, adapters=[handle] * len(tokens))
        return np.stack([np.frombuffer(row, "<f4") for row in rows])

    for task in TASKS:
        merged, low_rank = vectors(handles[f"{task}-merged"]), vectors(handles[task])
        # float32 differs in the order of sums; in bfloat16 W + BA is rounded once more, to 8 bits.
        assert cosines(merged, low_rank).min() > (1 - 1e-5 if dtype == "float32" else 0.99)
        assert cosines(merged, vectors(BASE_MODEL)).min() < 0.99
