"""What every family's checkpoints must be for a parity test to mean anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from model_families.family import Family, Reference, Role, Vectors
from model_families.samples import queries_of, texts_of

TEXTS = texts_of(8, seed=5, longest=300)
QUERIES = queries_of(2, seed=6)
DOCUMENTS = texts_of(5, seed=7, longest=120)
MOST_EQUAL = 0.999  # a mutant must be below for some text
LEAST_SCORE_CHANGE = 0.01  # and for rerankers change some raw logit by that, 100 times what parity allows


def cosines(first: Vectors, second: Vectors) -> Vectors:
    """[n, d] and [n, d] -> [n], in float64."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def calls_of(family: Family) -> list[tuple[str | None, Role | None]]:
    """Every task and every role, though not each with each."""
    first_task, first_role = family.tasks[0], family.roles[0]
    calls = [*((first_task, role) for role in family.roles), *((task, first_role) for task in family.tasks)]
    return list(dict.fromkeys(calls))


def outputs_of(family: Family, model: Reference) -> list[Vectors]:
    """What a model makes of the sample texts, which take turns with tasks and roles: vectors, or scores by query."""
    if family.kind == "reranker":
        return [np.asarray(model.score(query, DOCUMENTS)) for query in QUERIES]
    ways = [(task, role) for task in family.tasks for role in family.roles]
    count = max(2, len(TEXTS) // len(ways))
    shares = [[TEXTS[(turn * count + i) % len(TEXTS)] for i in range(count)] for turn in range(len(ways))]
    return [model.embed(share, task=task, role=role) for share, (task, role) in zip(shares, ways, strict=True)]


def separation(family: Family, right: list[Vectors], wrong: list[Vectors]) -> float:
    """How far a wrong folder is from the right one: 1 is what a mutant must reach to count as noticed."""
    if family.kind == "reranker":
        return max(float(np.abs(a - b).max()) for a, b in zip(right, wrong, strict=True)) / LEAST_SCORE_CHANGE
    worst = min(float(cosines(a, b).min()) for a, b in zip(right, wrong, strict=True))
    return (1.0 - worst) / (1.0 - MOST_EQUAL)


def mutate(family: Family, name: str, folder: Path, copy: Path) -> Path:
    """A copy of the folder with one mutant."""
    shutil.copytree(folder, copy)
    family.mutants[name](copy)
    return copy


def spread(vectors: Vectors) -> float:
    """The mean absolute cosine of different rows; near 1 where one common component hides all else."""
    products = np.abs(vectors @ vectors.T)
    return float(products[~np.eye(len(vectors), dtype=bool)].mean())


def evenness(attentions: list[Vectors]) -> float:
    """The mean entropy of attention rows over that of even rows; near 1 where attention is hardly any."""
    shares = []
    for layer in attentions:
        rows = layer.reshape(-1, layer.shape[-1]).astype(np.float64)
        seen = (rows > 0).sum(1)
        entropy = -(rows * np.log(np.maximum(rows, 1e-30))).sum(1)
        shares.append((entropy[seen > 8] / np.log(seen[seen > 8])).mean())
    return float(np.mean(shares))
