"""What one training step sees: batches drawn without end from the training sets of a task.

A batch comes from one dataset, since texts of one domain are hard to tell apart and a batch of mixed domains is not.
Drawing is deterministic in the seed.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from embedmux.training.datasets import LabelledSet, PairSet, RetrievalSet
from embedmux.training.split import Dataset

# Dataset name -> query id -> ids of documents that look relevant and are not.
Negatives = Mapping[str, Mapping[str, Sequence[str]]]

TEXTS_PER_LABEL = 4


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Columns of texts with the role of each, and one label per row (zeros where the loss has no use for labels)."""

    columns: tuple[tuple[str, ...], ...]
    roles: tuple[str | None, ...]
    labels: tuple[float, ...]


def batches(
    datasets: Sequence[Dataset], *, batch_size: int, seed: int, max_examples: int, negatives: Negatives
) -> Iterator[ExampleBatch]:
    """Batches without end; a dataset is chosen by the square root of its size, counted up to `max_examples`.

    Of a retrieval set with more pairs than that, `max_examples` pairs are drawn once and the others never seen.
    """
    choose = random.Random(seed)
    streams, weights = [], []
    for dataset in datasets:
        shuffle = random.Random(choose.random())
        if isinstance(dataset, RetrievalSet):
            mined = negatives.get(dataset.name, {})
            queries = [query for query in dataset.relevant if query in mined] or list(dataset.relevant)
            pairs = [(query, document) for query in queries for document in dataset.relevant[query]]
            pairs = shuffle.sample(pairs, min(len(pairs), max_examples))
            size = len(pairs)
            streams.append(_retrieval_batches(dataset, pairs, batch_size, shuffle, mined))
        elif isinstance(dataset, PairSet):
            size = len(dataset.scores)
            streams.append(_pair_batches(dataset, batch_size, shuffle))
        else:
            size = len(dataset.texts)
            streams.append(_label_batches(dataset, batch_size, shuffle))
        weights.append(sqrt(min(size, max_examples)))
    while True:
        yield next(choose.choices(streams, weights)[0])


def _retrieval_batches(
    dataset: RetrievalSet,
    pairs: list[tuple[str, str]],
    batch_size: int,
    shuffle: random.Random,
    negatives: Mapping[str, Sequence[str]],
) -> Iterator[ExampleBatch]:
    """Query, document and mined-negative columns in which no document is relevant to another row's query."""
    documents = list(dataset.corpus)
    waiting: list[tuple[str, str]] = []
    while True:
        if len(waiting) < batch_size:
            waiting += shuffle.sample(pairs, len(pairs))
        rows: list[tuple[str, str, str]] = []
        present: set[str] = set()  # documents in the batch
        relevant_to_batch: set[str] = set()
        later = []
        for query, document in waiting:
            relevant = dataset.relevant[query]
            negative = shuffle.choice(negatives.get(query) or documents)
            clashes = not relevant_to_batch.isdisjoint((document, negative)) or not present.isdisjoint(relevant)
            if len(rows) == batch_size or clashes or negative in relevant:
                later.append((query, document))
                continue
            rows.append((query, document, negative))
            present |= {document, negative}
            relevant_to_batch |= set(relevant)
        # What is left when a batch stays short all clashes with itself: drop it, a fresh round follows.
        waiting = later if len(rows) == batch_size else []
        if len(rows) < 2:
            continue
        yield ExampleBatch(
            columns=(
                tuple(dataset.queries[query] for query, _, _ in rows),
                tuple(dataset.corpus[document] for _, document, _ in rows),
                tuple(dataset.corpus[negative] for _, _, negative in rows),
            ),
            roles=("query", "document", "document"),
            labels=(0.0,) * len(rows),
        )


def _pair_batches(dataset: PairSet, batch_size: int, shuffle: random.Random) -> Iterator[ExampleBatch]:
    rows = list(range(len(dataset.scores)))
    while True:
        shuffle.shuffle(rows)
        for start in range(0, max(1, len(rows) - batch_size + 1), batch_size):
            chosen = rows[start : start + batch_size]
            yield ExampleBatch(
                columns=(tuple(dataset.first[row] for row in chosen), tuple(dataset.second[row] for row in chosen)),
                roles=(None, None),
                labels=tuple(dataset.scores[row] for row in chosen),
            )


def _label_batches(dataset: LabelledSet, batch_size: int, shuffle: random.Random) -> Iterator[ExampleBatch]:
    """A few texts of each of several labels; with few labels in the dataset, more texts of each."""
    by_label: dict[str, list[str]] = {}
    for text, label in zip(dataset.texts, dataset.labels, strict=True):
        by_label.setdefault(label, []).append(text)
    labels = sorted(label for label, texts in by_label.items() if len(texts) >= 2)
    num_labels = max(2, min(len(labels), batch_size // TEXTS_PER_LABEL))
    if len(labels) < 2:
        raise ValueError(f"dataset {dataset.name!r} has {len(labels)} labels with two texts or more, at least 2 needed")
    while True:
        chosen = shuffle.sample(labels, num_labels)
        rows = [
            (text, float(number))
            for number, label in enumerate(chosen)
            for text in shuffle.sample(by_label[label], min(len(by_label[label]), batch_size // num_labels))
        ]
        yield ExampleBatch((tuple(text for text, _ in rows),), (None,), tuple(number for _, number in rows))
