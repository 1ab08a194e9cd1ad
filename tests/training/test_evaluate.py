"""Metrics against numbers worked out by hand or by scikit-learn and scipy directly."""

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from embedmux.training.datasets import LabelledSet, PairSet, RetrievalSet, read_labelled
from embedmux.training.evaluate import (
    Score,
    Vectors,
    bootstrap_interval,
    evaluate,
    few_shot_accuracy,
    ndcg_at_10,
    spearman,
    unit,
    v_measures,
)

ANGLES = {"query": 0.0, "near": 0.1, "middle": 0.5, "far": 1.2}


def by_angle(texts: list[str], *, task: str | None, role: str | None) -> Vectors:
    return np.array([[math.cos(ANGLES[text]), math.sin(ANGLES[text])] for text in texts], np.float32)


def by_words(texts: list[str], *, task: str | None, role: str | None) -> Vectors:
    """Counts of letters: enough structure for a classifier."""
    return unit(np.array([[text.count(letter) + 0.1 for letter in "abcdefghilmnorstuw"] for text in texts], np.float32))


def test_ndcg_weighs_grades_by_rank() -> None:
    corpus = {name: name for name in ("near", "middle", "far")}
    dataset = RetrievalSet("s", corpus, {"q": "query"}, {"q": {"middle": 2, "far": 1}})
    gained = 2 / math.log2(3) + 1 / math.log2(4)
    best = 2 / math.log2(2) + 1 / math.log2(3)
    assert ndcg_at_10(dataset, by_angle) == pytest.approx([gained / best])


def test_spearman_is_of_the_cosine() -> None:
    dataset = PairSet("s", ("query",) * 3, ("near", "middle", "far"), (5.0, 1.0, 3.0))
    assert spearman(dataset, by_angle) == pytest.approx(0.5)


def test_few_shot_accuracy_draws_as_mteb_does(data: Path) -> None:
    train, test = read_labelled(data / "shops", "train"), read_labelled(data / "shops", "test")
    shuffle, rows, expected = np.random.RandomState(42).shuffle, list(range(len(train.texts))), []
    for _ in range(2):
        shuffle(rows)
        draw = [row for label in set(train.labels) for row in [r for r in rows if train.labels[r] == label][:3]]
        draw.sort(key=rows.index)
        model = LogisticRegression(max_iter=100, random_state=42)
        model.fit(by_words([train.texts[row] for row in draw], task=None, role=None), [train.labels[r] for r in draw])
        expected.append(model.score(by_words(list(test.texts), task=None, role=None), test.labels))
    got = few_shot_accuracy(train, test, by_words, examples_per_label=3, num_draws=2)
    assert got == pytest.approx(expected)


def test_v_measure_is_one_for_clean_clusters() -> None:
    dataset = LabelledSet("s", ("near", "far") * 20, ("one", "two") * 20)
    assert v_measures(dataset, by_angle, num_draws=2, draw_size=600) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("task", "name"),
    [("retrieval", "books"), ("text-matching", "likes"), ("classification", "shops")],
)
def test_every_task_gives_one_score_per_dataset(task: str, name: str, data: Path) -> None:
    (score,) = evaluate(task, data, by_words, datasets=[name])
    assert (score.task, score.dataset) == (task, name)
    assert score.value == pytest.approx(np.mean(score.samples))
    assert -100 <= score.value <= 100


def test_an_unknown_task_is_named(data: Path) -> None:
    with pytest.raises(ValueError, match="task 'summaries' has no protocol"):
        evaluate("summaries", data, by_words, datasets=["books"])


def test_the_interval_covers_the_gain_and_refuses_other_queries() -> None:
    before = Score("retrieval", "s", "nDCG@10", 50.0, tuple(np.linspace(0, 100, 50)))
    after = Score("retrieval", "s", "nDCG@10", 53.0, tuple(np.linspace(0, 100, 50) + np.tile([1.0, 5.0], 25)))
    low, high = bootstrap_interval(before, after)
    assert 1 < low < 3 < high < 5
    with pytest.raises(ValueError, match="50 samples before and 1 after"):
        bootstrap_interval(before, Score("retrieval", "s", "nDCG@10", 50.0, (50.0,)))
