"""Holds a slice of each training set back, so that training can stop on data it has not seen and never on a test part.

The slice is chosen by a hash of the text or the label: the same on every machine and in every order of the file.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedmux.training.datasets import (
    DatasetError,
    LabelledSet,
    PairSet,
    RetrievalSet,
    find_datasets,
    read_labelled,
    read_pairs,
    read_retrieval,
)

Dataset = RetrievalSet | PairSet | LabelledSet

HELD_BACK_SHARE = 0.1
HELD_BACK_LABEL_SHARE = 0.2  # of the labels of a clustering set


@dataclass(frozen=True, slots=True)
class Split:
    """One dataset in two: what is trained on, and what decides when to stop."""

    train: Dataset
    held_back: Dataset


def load_splits(task: str, data: Path, *, without: Sequence[str] = ()) -> list[Split]:
    """Every training set of `task` under `data` except those named in `without`, each split in two.

    Retrieval holds back queries, classification texts, clustering whole labels; similarity uses the dev part where
    there is one, else pairs. Test parts are not opened.
    """
    folders = find_datasets(data, task=task, part="train")
    unknown = set(without) - {folder.name for folder in folders}
    if unknown:
        raise DatasetError(f"cannot leave out {sorted(unknown)}: the sets are {[folder.name for folder in folders]}")
    folders = [folder for folder in folders if folder.name not in without]
    if not folders:
        raise DatasetError(f"no dataset is left for task {task!r} without {', '.join(without)}")
    return [_split(task, folder) for folder in folders]


def _split(task: str, folder: Path) -> Split:
    if task == "retrieval":
        return _split_queries(read_retrieval(folder, "train"))
    if task == "text-matching":
        train = read_pairs(folder, "train")
        if any(folder.glob("pairs.dev.jsonl*")):
            return Split(train, read_pairs(folder, "dev"))
        return _split_pairs(train)
    dataset = read_labelled(folder, "train")
    if task == "clustering":
        labels = sorted(set(dataset.labels), key=_fraction)
        held = set(labels[: max(2, round(len(labels) * HELD_BACK_LABEL_SHARE))])
        return _split_labelled(dataset, lambda text, label: label in held)
    return _split_labelled(dataset, lambda text, label: _fraction(text) < HELD_BACK_SHARE)


def _split_queries(dataset: RetrievalSet) -> Split:
    def keep(wanted: bool) -> RetrievalSet:
        chosen = {
            query: text for query, text in dataset.queries.items() if (_fraction(text) < HELD_BACK_SHARE) == wanted
        }
        return replace(dataset, queries=chosen, relevant={query: dataset.relevant[query] for query in chosen})

    return Split(keep(False), keep(True))


def _split_pairs(dataset: PairSet) -> Split:
    def keep(wanted: bool) -> PairSet:
        rows = [row for row, text in enumerate(dataset.first) if (_fraction(text) < HELD_BACK_SHARE) == wanted]
        return replace(
            dataset,
            first=tuple(dataset.first[row] for row in rows),
            second=tuple(dataset.second[row] for row in rows),
            scores=tuple(dataset.scores[row] for row in rows),
        )

    return Split(keep(False), keep(True))


def _split_labelled(dataset: LabelledSet, is_held_back: Callable[[str, str], bool]) -> Split:
    def keep(wanted: bool) -> LabelledSet:
        rows = [pair for pair in zip(dataset.texts, dataset.labels, strict=True) if is_held_back(*pair) == wanted]
        return replace(dataset, texts=tuple(text for text, _ in rows), labels=tuple(label for _, label in rows))

    return Split(keep(False), keep(True))


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
