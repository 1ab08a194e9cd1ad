"""Readers for data folders: one sub-folder per dataset, each with a `dataset.json` that names its `kind`.

    kind            files                                                   read by
    retrieval       corpus.jsonl, queries.jsonl, qrels/{train,test}.tsv     read_retrieval
    similarity      pairs.{train,dev,test}.jsonl                            read_pairs
    classification  {train,dev,test}.jsonl                                  read_labelled
    clustering      test.jsonl, split by label in dataset.json              read_labelled

Every `x.jsonl` may lie there as `x.jsonl.gz`. A reader is asked for one part and opens the files of that part only;
retrieval shares its corpus and its queries file between parts, as BEIR does, and keeps only the queries that the
part's qrels name. Anything missing or odd raises DatasetError with the file and the line.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Part = Literal["train", "dev", "test"]

KIND_OF_TASK = {
    "retrieval": "retrieval",
    "text-matching": "similarity",
    "classification": "classification",
    "clustering": "clustering",
}


class DatasetError(ValueError):
    """A data folder that cannot be read; the message names the file, what was wanted and what was found."""


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Documents, queries and judgements of one part. `relevant` maps query id -> document id -> grade (> 0)."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of texts with a similarity score each; the three tuples have one length."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Texts with one label each; the two tuples have one length."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]


def find_datasets(data: Path, *, task: str, part: Part) -> list[Path]:
    """Like `list_datasets`, but never empty: raises DatasetError that says what is missing."""
    found = list_datasets(data, task=task, part=part)
    if not found:
        kind, number = KIND_OF_TASK[task], len(list(data.glob("*/dataset.json")))
        raise DatasetError(
            f"data folder {str(data)!r} holds {number} datasets, none of kind {kind!r} with a {part} part; "
            f'put each dataset into its own folder with a dataset.json {{"name": …, "kind": {kind!r}}}'
        )
    return found


def list_datasets(data: Path, *, task: str, part: Part) -> list[Path]:
    """The folders under `data` that hold datasets for this task with files for this part, sorted by name."""
    kind = KIND_OF_TASK.get(task)
    if kind is None:
        raise DatasetError(f"task {task!r} is not known; the tasks are {', '.join(KIND_OF_TASK)}")
    if not data.is_dir():
        raise DatasetError(f"data folder {str(data)!r} does not exist; give the folder that holds the dataset folders")
    folders = [path.parent for path in sorted(data.glob("*/dataset.json"))]
    return [folder for folder in folders if describe(folder)["kind"] == kind and _has_part(folder, kind, part)]


def describe(folder: Path) -> dict[str, Any]:
    """The content of `dataset.json`; `name` (default: the folder's name) and `kind` are always present."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(f"dataset {folder.name!r} has no dataset.json; it must name the kind of the dataset")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("kind") not in KIND_OF_TASK.values():
        kind = description.get("kind") if isinstance(description, dict) else None
        raise DatasetError(f"{path}: kind is {kind!r}, the kinds are {', '.join(KIND_OF_TASK.values())}")
    return {"name": folder.name, **description}


def read_retrieval(folder: Path, part: Part) -> RetrievalSet:
    """One part of a BEIR-style retrieval set. A document's text is `(title + " " + text).strip()`, as in MTEB."""
    corpus = {
        _string(row, "_id", where): (row.get("title", "") + " " + _string(row, "text", where)).strip()
        for where, row in _rows(folder, "corpus")
    }
    texts = {_string(row, "_id", where): _string(row, "text", where) for where, row in _rows(folder, "queries")}
    relevant: dict[str, dict[str, int]] = {}
    for where, query, document, grade in _judgements(folder / "qrels" / f"{part}.tsv"):
        if query not in texts:
            raise DatasetError(f"{where}: query {query!r} is not in queries.jsonl")
        if document not in corpus:
            raise DatasetError(f"{where}: document {document!r} is not in corpus.jsonl")
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    queries = {query: texts[query] for query in relevant}
    return RetrievalSet(name=folder.name, corpus=corpus, queries=queries, relevant=relevant)


def read_pairs(folder: Path, part: Part) -> PairSet:
    """One part of a set of scored pairs (`text1`, `text2`, `score`)."""
    rows = list(_rows(folder, f"pairs.{part}"))
    return PairSet(
        name=folder.name,
        first=tuple(_string(row, "text1", where) for where, row in rows),
        second=tuple(_string(row, "text2", where) for where, row in rows),
        scores=tuple(_number(row, "score", where) for where, row in rows),
    )


def read_labelled(folder: Path, part: Part) -> LabelledSet:
    """One part of a classification or clustering set (`text`, `label`).

    A clustering set has one file; its parts are whole labels, `train_labels` and `test_labels` in dataset.json.
    """
    description = describe(folder)
    if description["kind"] != "clustering":
        rows = list(_rows(folder, part))
    else:
        wanted = set(_clustering_labels(folder, description, part))
        rows = [(where, row) for where, row in _rows(folder, "test") if _string(row, "label", where) in wanted]
    return LabelledSet(
        name=folder.name,
        texts=tuple(_string(row, "text", where) for where, row in rows),
        labels=tuple(_string(row, "label", where) for where, row in rows),
    )


def _has_part(folder: Path, kind: str, part: Part) -> bool:
    if kind == "clustering":
        return bool(describe(folder).get(f"{part}_labels"))
    if kind == "retrieval":
        return (folder / "qrels" / f"{part}.tsv").is_file()
    stem = f"pairs.{part}" if kind == "similarity" else part
    return any((folder / f"{stem}{suffix}").is_file() for suffix in (".jsonl", ".jsonl.gz"))


def _clustering_labels(folder: Path, description: dict[str, Any], part: Part) -> list[str]:
    train, test = (list(description.get(f"{name}_labels", ())) for name in ("train", "test"))
    both = set(train) & set(test)
    if both:
        raise DatasetError(f"dataset {folder.name!r}: labels {sorted(both)} are in train_labels and in test_labels")
    labels = {"train": train, "test": test}.get(part, [])
    if not labels:
        raise DatasetError(f"dataset {folder.name!r}: dataset.json has no {part}_labels")
    return labels


def _rows(folder: Path, stem: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for each line of `stem`.jsonl or `stem`.jsonl.gz."""
    plain, packed = folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise DatasetError(f"dataset {folder.name!r} has neither {plain.name} nor {packed.name}")
    with gzip.open(path, "rt", encoding="utf-8") if path == packed else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DatasetError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{where}: wanted an object, got {type(row).__name__}")
            yield where, row


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield (place, query id, document id, grade) from a qrels file with its header line."""
    if not path.is_file():
        raise DatasetError(f"dataset {path.parent.parent.name!r} has no qrels/{path.name}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where, fields = f"{path}:{number}", line.split("\t")
        if (number == 1 and fields[0] == "query-id") or not line.strip():
            continue
        if len(fields) != 3 or not fields[2].lstrip("-").isdigit():
            raise DatasetError(f"{where}: wanted query-id, corpus-id and a whole-number score parted by tabs")
        yield where, fields[0], fields[1], int(fields[2])


def _string(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {key!r} must be a string, got {value!r}")
    return value


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f"{where}: {key!r} must be a number, got {value!r}")
    return float(value)
