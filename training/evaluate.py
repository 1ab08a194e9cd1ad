"""Quality on test parts: one protocol per task, the same for the bare model and for every adapter.

The caller hands over an `embed` function, so the same numbers can be had from a local model, from a server or from
any other library. Protocols follow MTEB 2 (Muennighoff et al., EACL 2023; Enevoldsen et al., ICLR 2025):

    retrieval       nDCG@10 of an exact cosine search over the whole corpus, trec_eval's definition
    text-matching   Spearman correlation of cosine with the gold score
    classification  accuracy of a logistic regression on a few examples per label, mean of ten draws
    clustering      V-measure of mini-batch k-means, mean of ten bootstraps, on labels never seen in training
"""

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytrec_eval
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score

from embedmux.training.datasets import LabelledSet, PairSet, RetrievalSet, read_labelled, read_pairs, read_retrieval

Vectors = NDArray[np.float32]

TEST_SETS: dict[str, tuple[str, ...]] = {
    "retrieval": ("cacm", "cisi", "mbpp", "medquad", "obliqa", "tatqa_dev"),
    "text-matching": ("stsb",),
    "classification": ("amazon_counterfactual_en", "banking77", "hwu64"),
    "clustering": ("biomedical_titles", "stackoverflow_titles"),
}
METRICS = {
    "retrieval": "nDCG@10",
    "text-matching": "Spearman",
    "classification": "accuracy",
    "clustering": "V-measure",
}
EXAMPLES_PER_LABEL = {"amazon_counterfactual_en": 32}  # MTEB's exception; every other set draws 8
SEED = 42
NUM_DRAWS = 10
DRAW_SIZE = 16_384
DEPTH = 100  # documents kept per query; nDCG@10 needs ten, the rest decides ties


class Embed(Protocol):
    """Turns texts into vectors [len(texts), D] float32. `role` is "query" or "document" for retrieval, else None."""

    def __call__(self, texts: list[str], *, task: str | None, role: str | None) -> Vectors: ...


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one dataset, x100. `samples` are the values that `value` is the mean of: queries, draws, …"""

    task: str
    dataset: str
    metric: str
    value: float
    samples: tuple[float, ...]


def evaluate(task: str, data: Path, embed: Embed, *, datasets: Sequence[str] | None = None) -> list[Score]:
    """Score `embed` on the test part of each dataset (default: TEST_SETS[task]) found under the folder `data`."""
    return [evaluate_dataset(task, data / name, embed) for name in datasets or TEST_SETS[task]]


def evaluate_dataset(task: str, folder: Path, embed: Embed) -> Score:
    """Score `embed` on the test part of one dataset folder."""
    match task:
        case "retrieval":
            samples = ndcg_at_10(read_retrieval(folder, "test"), embed)
        case "text-matching":
            samples = [spearman(read_pairs(folder, "test"), embed)]
        case "classification":
            examples = EXAMPLES_PER_LABEL.get(folder.name, 8)
            train, test = read_labelled(folder, "train"), read_labelled(folder, "test")
            samples = few_shot_accuracy(train, test, embed, examples_per_label=examples)
        case "clustering":
            samples = v_measures(read_labelled(folder, "test"), embed)
        case _:
            raise ValueError(f"task {task!r} has no protocol; the tasks are {', '.join(METRICS)}")
    percent = tuple(100.0 * float(sample) for sample in samples)
    return Score(task, folder.name, METRICS[task], float(np.mean(percent)), percent)


def ndcg_at_10(dataset: RetrievalSet, embed: Embed) -> list[float]:
    """nDCG@10 of every query, in [0, 1]; documents by exact cosine, ties as trec_eval breaks them."""
    query_ids, document_ids = list(dataset.queries), list(dataset.corpus)
    queries = unit(embed(list(dataset.queries.values()), task="retrieval", role="query"))
    documents = unit(embed(list(dataset.corpus.values()), task="retrieval", role="document"))
    depth = min(DEPTH, len(document_ids))
    run: dict[str, dict[str, float]] = {}
    for query_id, vector in zip(query_ids, queries, strict=True):
        scores = documents @ vector
        best = np.argpartition(-scores, depth - 1)[:depth]
        run[query_id] = {document_ids[row]: float(scores[row]) for row in best}
    measured = pytrec_eval.RelevanceEvaluator(dataset.relevant, {"ndcg_cut.10"}).evaluate(run)
    return [measured[query_id]["ndcg_cut_10"] for query_id in query_ids]


def spearman(dataset: PairSet, embed: Embed) -> float:
    """Spearman correlation in [-1, 1] of the pairs' cosine with their gold score."""
    first = unit(embed(list(dataset.first), task="text-matching", role=None))
    second = unit(embed(list(dataset.second), task="text-matching", role=None))
    return float(spearmanr((first * second).sum(axis=1), dataset.scores).statistic)


def few_shot_accuracy(
    train: LabelledSet, test: LabelledSet, embed: Embed, *, examples_per_label: int = 8, num_draws: int = NUM_DRAWS
) -> list[float]:
    """Accuracy in [0, 1] on `test` of ten logistic regressions, each on a fresh few examples per label of `train`."""
    draws = _draw_examples(train.labels, examples_per_label, num_draws)
    used = sorted({row for draw in draws for row in draw})
    train_vectors = embed([train.texts[row] for row in used], task="classification", role=None)
    test_vectors = embed(list(test.texts), task="classification", role=None)
    place = {row: position for position, row in enumerate(used)}
    accuracies = []
    for draw in draws:
        model = LogisticRegression(max_iter=100, random_state=SEED)
        # A hundred steps are part of the protocol, converged or not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train_vectors[[place[row] for row in draw]], [train.labels[row] for row in draw])
        accuracies.append(float(model.score(test_vectors, test.labels)))
    return accuracies


def v_measures(
    dataset: LabelledSet, embed: Embed, *, num_draws: int = NUM_DRAWS, draw_size: int = DRAW_SIZE
) -> list[float]:
    """V-measure in [0, 1] of ten k-means clusterings, each of 16,384 texts drawn with replacement."""
    vectors = embed(list(dataset.texts), task="clustering", role=None)
    labels = np.array(dataset.labels)
    choose = random.Random(SEED)
    values = []
    for _ in range(num_draws):
        rows = choose.choices(range(len(labels)), k=draw_size)
        kmeans = MiniBatchKMeans(len(set(labels)), batch_size=512, init="k-means++", n_init=1, random_state=SEED)
        values.append(float(v_measure_score(labels[rows], kmeans.fit_predict(vectors[rows]))))
    return values


def bootstrap_interval(before: Score, after: Score, *, rounds: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the mean gain of `after` over `before`, x100, by paired bootstrap over the samples."""
    if len(before.samples) != len(after.samples):
        raise ValueError(
            f"{before.dataset!r} has {len(before.samples)} samples before and {len(after.samples)} after; "
            "score both with the same protocol"
        )
    gains = np.array(after.samples) - np.array(before.samples)
    rows = np.random.default_rng(SEED).integers(len(gains), size=(rounds, len(gains)))
    low, high = np.percentile(gains[rows].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def unit(vectors: Vectors) -> Vectors:
    """The rows of `vectors` [N, D] divided by their length; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def _draw_examples(labels: Sequence[str], examples_per_label: int, num_draws: int) -> list[list[int]]:
    """Draws of row numbers. As in MTEB, one list is shuffled again and again, so that the draws differ."""
    shuffle = np.random.RandomState(SEED).shuffle
    rows = list(range(len(labels)))
    draws = []
    for _ in range(num_draws):
        shuffle(rows)
        taken: Counter[str] = Counter()
        draw = []
        for row in rows:
            if taken[labels[row]] < examples_per_label:
                taken[labels[row]] += 1
                draw.append(row)
        draws.append(draw)
    return draws
