"""Is every family what its reference says, and would it be noticed if it were not?"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from harness.report import Report
from model_families import ALL
from model_families.checks import LEAST_SCORE_CHANGE, QUERIES, cosines, mutate, outputs_of
from model_families.family import Family, Reference, Vectors
from model_families.samples import queries_of, texts_of
from model_families.served import Served
from rich.progress import track

from embedmux.server.checkpoint.read import read_contract
from embedmux.server.errors import ModelRejected

NUM_TEXTS, LONGEST = 60, 580
PROMPT_ROOM = 60  # tokens that a prompt, special tokens and a last word in pieces may take of a model's limit
NUM_DOCUMENTS, LONGEST_DOCUMENT = 30, 400
EQUAL, HALF_EQUAL, SCORE_ERROR, DIFFERENT = 0.99999, 0.999, 1e-4, 0.999
LONG_DOCUMENTS = texts_of(4, seed=6, longest=150)
NO_SCORE = 1e9  # the error of a reranker that gave no scores
# In half an hour one full size of each architecture; LONG=1 takes them all.
FULL = (
    "jina-embeddings-v5-text-nano", "qwen3-embedding-0.6b", "bge-m3", "bge-base-en-v1.5", "gte-base-en-v1.5",
    "gte-modernbert-base", "nomic-embed-text-v1.5", "embeddinggemma-300m", "jina-embeddings-v3", "qwen3-reranker-0.6b",
)  # fmt: skip


@dataclass
class Found:
    """What was measured of one family at one size; 1.0 and 0.0 where there is nothing to measure."""

    name: str
    cos_fp32: float = 1.0
    cos_bf16: float = 1.0
    score_error: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether all of the family's numbers reach their bars."""
        close = self.cos_fp32 >= EQUAL and self.cos_bf16 >= HALF_EQUAL and self.score_error <= SCORE_ERROR
        return close and not self.faults


def parity_figures(report: Report, *, is_long: bool) -> None:
    """Adds cos_fp32_min, cos_bf16_min, score_fp32_max_error, families and mutants_killed."""
    found: dict[str, list[Found]] = {}
    mutants: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as root:
        for family in track(ALL, description="families, tiny"):
            folder = Path(root) / "tiny" / family.name
            family.build(folder, "tiny", 1)
            if family.is_refused:
                found[family.name] = [refusal(family, folder)]
                continue
            found[family.name] = [tried(family, folder, dtypes=("float32",))]
            mutants |= {f"{family.name}: {name}": caught for name, caught in hunt(family, folder, Path(root))}
        full = [family for family in ALL if family.has_full and (is_long or family.name in FULL)]
        for family in track(full, description="families, full size"):
            started = time.monotonic()
            folder = Path(root) / "full" / family.name
            family.build(folder, "full", 2)
            found[family.name].append(tried(family, folder, dtypes=("float32", "bfloat16")))
            shutil.rmtree(folder)
            gc.collect()  # references of several gigabytes that hold themselves
            print(f"{family.name} at full size: {time.monotonic() - started:.0f} s", flush=True)
    every = [one for ones in found.values() for one in ones]
    for one in every:
        if not one.passes:
            print(f"{one.name}: {one}", flush=True)
    for mutant in (name for name, caught in mutants.items() if not caught):
        print(f"not noticed: {mutant}", flush=True)
    sizes = f"{len(every)} checkpoints, {len(full)} of full size"
    report.add("cos_fp32_min", min(one.cos_fp32 for one in every), "cosine", f">= {EQUAL}", sizes)
    report.add("cos_bf16_min", min(one.cos_bf16 for one in every), "cosine", f">= {HALF_EQUAL}", "bf16 against fp32")
    report.add("score_fp32_max_error", max(one.score_error for one in every), "logit", f"<= {SCORE_ERROR}")
    passing = sum(all(one.passes for one in ones) for ones in found.values())
    report.add("families", passing, "families", f">= {len(found)}", f"of {len(found)} in the table")
    report.add("mutants_killed", sum(mutants.values()) / len(mutants), "share", ">= 1.0", f"of {len(mutants)}")


def tried(family: Family, folder: Path, *, dtypes: tuple[str, ...]) -> Found:
    """What ``examine`` finds; a family that cannot be measured fails, and the others are measured all the same."""
    try:
        return examine(family, folder, dtypes=dtypes)
    except Exception as error:  # whatever it is, it counts against the family
        traceback.print_exc()
        faults = [f"{type(error).__name__}: {error}"]
        if family.kind == "reranker":
            return Found(family.name, score_error=NO_SCORE, faults=faults)
        return Found(family.name, cos_fp32=0.0, cos_bf16=0.0, faults=faults)


def examine(family: Family, folder: Path, *, dtypes: tuple[str, ...]) -> Found:
    """A folder served in these precisions beside its reference.

    Tiny checkpoints are peaked far beyond trained ones, so that mistakes show, and bfloat16 shows there as well: it is
    asked of full sizes.
    """
    found, reference = Found(family.name), family.reference(folder)
    if family.kind == "reranker":
        documents = texts_of(NUM_DOCUMENTS, seed=3, longest=LONGEST_DOCUMENT)
        with Served(folder) as served:
            for query in QUERIES:
                error = np.abs(served.score(query, documents) - reference.score(query, documents)).max()
                found.score_error = max(found.score_error, float(error))
        return found
    limit = read_contract(folder).max_tokens - PROMPT_ROOM
    texts = texts_of(NUM_TEXTS, seed=4, longest=min(LONGEST, limit))
    if "dense" not in family.outputs:  # their queries are of 32 tokens
        texts = queries_of(NUM_TEXTS, seed=4)
    whole = {}
    for dtype in dtypes:
        with Served(folder, dtype=dtype) as served:
            whole[dtype] = in_turns(family, served, texts)
            if dtype == "float32":
                found.faults = token_faults(family, served, reference, texts[:12])
    found.cos_fp32 = float(cosines(whole["float32"], in_turns(family, reference, texts)).min())
    if "bfloat16" in whole:
        found.cos_bf16 = float(cosines(whole["bfloat16"], whole["float32"]).min())
    return found


def refusal(family: Family, folder: Path) -> Found:
    """A family whose contract is not established passes by being refused."""
    try:
        with Served(folder):
            return Found(family.name, faults=["it is served though nothing establishes what it computes"])
    except ModelRejected:
        return Found(family.name)


def in_turns(family: Family, model: Served | Reference, texts: list[str]) -> Vectors:
    """Vectors of the texts, which take turns with the family's tasks and roles; token vectors end to end if there are
    no others."""
    if "dense" not in family.outputs:
        rows = []
        for role in (role for role in family.roles if role is not None):
            # Queries are of 32 tokens; only a document is wider than a window.
            side = texts if role == "query" else [*texts, *LONG_DOCUMENTS]
            rows += model.tokens(side, role) if isinstance(model, Served) else [model.tokens(t, role) for t in side]
        return np.concatenate(rows)
    ways = [(task, role) for task in family.tasks for role in family.roles]
    found: list[Vectors] = [np.empty(0)] * len(texts)
    for turn, (task, role) in enumerate(ways):
        chosen = range(turn, len(texts), len(ways))
        if not chosen:
            continue
        rows = model.embed([texts[index] for index in chosen], task=task, role=role)
        for index, row in zip(chosen, rows, strict=True):
            found[index] = row
    return np.stack(found)


def token_faults(family: Family, served: Served, reference: Reference, texts: list[str]) -> list[str]:
    """The tasks and roles for which the model does not read just what the reference says."""
    return [
        f"tokens of task {task}, role {role}"
        for task in family.tasks
        for role in family.roles
        if served.token_ids(texts, task=task, role=role)
        != [list(map(int, reference.token_ids(text, task=task, role=role))) for text in texts]
    ]


def hunt(family: Family, folder: Path, root: Path) -> list[tuple[str, bool]]:
    """Each of the family's mutants, and whether the comparison with the right reference notices it."""
    right, found = sample(family, family.reference(folder)), []
    for name in family.mutants:
        wrong = mutate(family, name, folder, root / "mutants" / family.name / name)
        try:
            served = Served(wrong)
        except ModelRejected:
            found.append((name, True))
            continue
        with served:
            # A server that heals the fault agrees with the right reference; then the wrong one must stand out.
            made = sample(family, served)
            caught = is_another(family, made, right)
            found.append((name, caught or is_another(family, made, sample(family, family.reference(wrong)))))
        shutil.rmtree(wrong)
    return found


def sample(family: Family, model: Served | Reference) -> Vectors:
    """Vectors of a few texts under every task and role, or scores."""
    if family.kind == "reranker" or "dense" in family.outputs:
        return np.concatenate(outputs_of(family, model))  # type: ignore[arg-type]
    return in_turns(family, model, [*QUERIES, "Hello, world!"])


def is_another(family: Family, found: Vectors, wanted: Vectors) -> bool:
    """Whether some text's vector or score is clearly another one."""
    if found.shape != wanted.shape:
        return True
    if family.kind == "reranker":
        return bool(np.abs(found - wanted).max() > LEAST_SCORE_CHANGE)
    return bool(cosines(found, wanted).min() < DIFFERENT)
