"""Readers: parts strictly apart, gzipped or not, and errors that name the place."""

import json
from pathlib import Path

import pytest

from embedmux.training.datasets import DatasetError, find_datasets, read_labelled, read_pairs, read_retrieval
from embedmux.training.split import load_splits


def test_retrieval_joins_title_and_text_and_keeps_only_the_queries_of_the_part(data: Path) -> None:
    train, test = (read_retrieval(data / "books", part) for part in ("train", "test"))
    assert len(train.corpus) == len(test.corpus) == 120
    assert train.corpus["d0"].startswith("animals ")
    assert not set(train.queries) & set(test.queries)
    assert train.relevant["q7"] == {"d7": 1}


def test_pairs_and_labels_are_read_by_part(data: Path) -> None:
    assert len(read_pairs(data / "likes", "dev").scores) == 20
    assert len(read_labelled(data / "shops", "train").texts) == 90
    assert len(read_labelled(data / "shops", "test").texts) == 30


def test_clustering_parts_are_whole_labels(data: Path) -> None:
    train, test = (read_labelled(data / "themes", part) for part in ("train", "test"))
    assert set(train.labels) == {"animals", "sky", "colours", "c"}
    assert set(test.labels) == {"a", "b"}


@pytest.mark.parametrize("task", ["retrieval", "text-matching", "classification", "clustering"])
def test_splits_are_disjoint_stable_and_never_open_a_test_part(task: str, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    for folder in data.iterdir():
        (copy / folder.name / "qrels").mkdir(parents=True)
        for path in folder.rglob("*.*"):
            if path.is_file() and ("test" not in path.name or folder.name == "themes"):
                (copy / path.relative_to(data)).write_bytes(path.read_bytes())
    (split,) = load_splits(task, copy)
    assert load_splits(task, data) == [split]
    first, second = (_texts(half) for half in (split.train, split.held_back))
    assert first and second
    if task in ("classification", "clustering"):
        assert not first & second


def test_an_unknown_dataset_cannot_be_left_out(data: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot leave out \['nothing'\]"):
        load_splits("retrieval", data, without=("nothing",))
    with pytest.raises(DatasetError, match="no dataset is left for task 'retrieval' without books"):
        load_splits("retrieval", data, without=("books",))


def test_finding_names_the_kind_that_is_missing(data: Path, tmp_path: Path) -> None:
    assert [folder.name for folder in find_datasets(data, task="text-matching", part="dev")] == ["likes"]
    with pytest.raises(DatasetError, match="does not exist"):
        find_datasets(tmp_path / "nowhere", task="retrieval", part="train")
    with pytest.raises(DatasetError, match="holds 4 datasets, none of kind 'classification' with a dev part"):
        find_datasets(data, task="classification", part="dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"train\.jsonl:2: not JSON"),
        ("[1]", r"train\.jsonl:2: wanted an object, got list"),
        ('{"text": "a", "label": 3}', r"train\.jsonl:2: 'label' must be a string, got 3"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"kind": "classification"}))
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=message):
        read_labelled(tmp_path, "train")


def test_a_judgement_of_an_unknown_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "t"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "t"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tother\t1\n")
    with pytest.raises(DatasetError, match=r"test\.tsv:2: document 'other' is not in corpus\.jsonl"):
        read_retrieval(tmp_path, "test")


def _texts(half: object) -> set[str]:
    for name in ("queries", "first", "texts"):
        if hasattr(half, name):
            return set(getattr(half, name))
    raise AssertionError(half)
