"""Mines hard negatives: documents that the bare model ranks high for a query and nobody judged relevant."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedmux.training.datasets import RetrievalSet
from embedmux.training.evaluate import Embed
from embedmux.training.split import Split

FIRST_RANK, LAST_RANK = 2, 30
MAX_SHARE_OF_POSITIVE = 0.95  # a document closer than this share of the best positive is probably relevant itself

MAX_DOCUMENTS = 2000

# Query id -> document ids, nearest first.
Mined = dict[str, Sequence[str]]


def mine_negatives(dataset: RetrievalSet, embed: Embed) -> Mined:
    """Documents of ranks 2 to 30 under `embed` for every query of `dataset`.

    Documents that score above 95 % of the query's best judged document are left out (TopK-PercPos of NV-Retriever,
    Moreira et al., 2024), since a set judged in part holds many relevant documents without a judgement.
    """
    document_ids = list(dataset.corpus)
    row_of = {document: row for row, document in enumerate(document_ids)}
    queries = embed(list(dataset.queries.values()), task=None, role="query")
    documents = embed(list(dataset.corpus.values()), task=None, role="document")
    mined: Mined = {}
    for query, vector in zip(dataset.queries, queries, strict=True):
        scores, relevant = documents @ vector, dataset.relevant[query]
        limit = MAX_SHARE_OF_POSITIVE * max(scores[row_of[document]] for document in relevant)
        ranked = np.argsort(-scores)[FIRST_RANK - 1 : LAST_RANK]
        mined[query] = tuple(
            document_ids[row] for row in ranked if scores[row] < limit and document_ids[row] not in relevant
        )
    return mined


def mine_split(split: Split, embed: Embed, *, max_queries: int, seed: int) -> Mined:
    """Negatives for up to `max_queries` training queries and for all held-back queries.

    The search is over their relevant documents and others drawn up to MAX_DOCUMENTS, embedded once.
    """
    train, held_back = split.train, split.held_back
    if not isinstance(train, RetrievalSet) or not isinstance(held_back, RetrievalSet):
        return {}
    chosen = dict(list(train.queries.items())[:max_queries])
    queries = chosen | held_back.queries
    relevant = {query: (train.relevant | held_back.relevant)[query] for query in queries}
    wanted = {document for grades in relevant.values() for document in grades}
    others = [document for document in train.corpus if document not in wanted]
    wanted |= set(random.Random(seed).sample(others, min(len(others), max(0, MAX_DOCUMENTS - len(wanted)))))
    corpus = {document: text for document, text in train.corpus.items() if document in wanted}
    return mine_negatives(replace(train, corpus=corpus, queries=queries, relevant=relevant), embed)
