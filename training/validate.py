"""The number that decides when training stops: the task's own metric on the held-back slices, made cheap."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from embedmux.training.datasets import LabelledSet, PairSet, RetrievalSet
from embedmux.training.evaluate import Embed, few_shot_accuracy, ndcg_at_10, spearman, v_measures
from embedmux.training.split import Split

MAX_QUERIES = 100
NEGATIVES_PER_QUERY = 4
MAX_TEXTS = 1200
NUM_DRAWS = 2
CLUSTERINGS = 10


def held_back_score(task: str, splits: Sequence[Split], embed: Embed) -> float:
    """The mean over the datasets of the task's metric on what was held back, x100."""
    return 100.0 * float(np.mean([_score(task, split, embed) for split in splits]))


def shrink_held_back(split: Split, *, negatives: Mapping[str, Sequence[str]], seed: int) -> Split:
    """The same split with a held-back slice small enough to be scored many times.

    Retrieval keeps 100 queries, the documents relevant to them and the four hardest negatives of each.
    """
    choose, held = random.Random(seed), split.held_back
    if isinstance(held, RetrievalSet):
        queries = choose.sample(sorted(held.queries), min(MAX_QUERIES, len(held.queries)))
        relevant = {query: held.relevant[query] for query in queries}
        hard = {document for query in queries for document in negatives.get(query, ())[:NEGATIVES_PER_QUERY]}
        wanted = hard | {document for grades in relevant.values() for document in grades}
        corpus = {document: text for document, text in held.corpus.items() if document in wanted}
        small = {query: held.queries[query] for query in queries}
        return replace(split, held_back=replace(held, queries=small, relevant=relevant, corpus=corpus))
    if isinstance(held, LabelledSet) and len(held.texts) > MAX_TEXTS:
        rows = choose.sample(range(len(held.texts)), MAX_TEXTS)
        texts, labels = tuple(held.texts[row] for row in rows), tuple(held.labels[row] for row in rows)
        return replace(split, held_back=replace(held, texts=texts, labels=labels))
    return split


def _score(task: str, split: Split, embed: Embed) -> float:
    held = split.held_back
    if isinstance(held, RetrievalSet):
        return float(np.mean(ndcg_at_10(held, embed)))
    if isinstance(held, PairSet):
        return spearman(held, embed)
    if not isinstance(held, LabelledSet):
        assert_never(held)
    if task == "clustering":
        return float(np.mean(v_measures(held, embed, num_draws=CLUSTERINGS, draw_size=len(held.texts))))
    if not isinstance(split.train, LabelledSet):
        raise TypeError(f"dataset {held.name!r} has labels held back but none to train on")
    return float(np.mean(few_shot_accuracy(split.train, held, embed, num_draws=NUM_DRAWS)))
