"""Ranges for int8 and uint8 codes: the least and the greatest value of each dimension over a sample of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from embedmux.training.datasets import PairSet, RetrievalSet
from embedmux.training.evaluate import Embed, Vectors, unit
from embedmux.training.split import Dataset

SIZES = (1024, 768, 512, 256, 128, 64)  # below the model's own size, which always comes first
NUM_TEXTS = 3000
FILE_NAME = "calibration.safetensors"


@dataclass(frozen=True, slots=True)
class RoleText:
    """A text to calibrate on and the side it stands on; None where the task has no sides."""

    text: str
    role: str | None


def calibrate(texts: Sequence[RoleText], embed: Embed, *, task: str | None) -> dict[str, torch.Tensor]:
    """Ranges for every supported size: name "<size>" -> float32 [2, size], row 0 the minima and row 1 the maxima.

    A vector is cut to the size first and normalised after, as the server answers it.
    """
    if not texts:
        raise ValueError("no texts to calibrate on")
    vectors = np.concatenate(
        [
            embed([text.text for text in texts if text.role == role], task=task, role=role)
            for role in sorted({text.role for text in texts}, key=str)
        ]
    )
    full = vectors.shape[1]
    return {str(size): _ranges(vectors, size) for size in (full, *(size for size in SIZES if size < full))}


def write_calibration(ranges: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write `calibration.safetensors` into `folder` and return its path."""
    path = folder / FILE_NAME
    path.write_bytes(save(ranges, metadata={"format": "pt"}))
    return path


def calibration_texts(datasets: Sequence[Dataset], *, seed: int, num_texts: int = NUM_TEXTS) -> list[RoleText]:
    """Up to `num_texts` texts in equal shares of the datasets; of retrieval sets as many queries as documents."""
    generator = np.random.default_rng(seed)
    share = -(-num_texts // len(datasets))
    return [text for dataset in datasets for text in _sample(dataset, share, generator)]


def _sample(dataset: Dataset, number: int, generator: np.random.Generator) -> list[RoleText]:
    if isinstance(dataset, RetrievalSet):
        queries = _pick(list(dataset.queries.values()), number // 2, generator)
        documents = _pick(list(dataset.corpus.values()), number - len(queries), generator)
        return [RoleText(text, "query") for text in queries] + [RoleText(text, "document") for text in documents]
    texts = dataset.first + dataset.second if isinstance(dataset, PairSet) else dataset.texts
    return [RoleText(text, None) for text in _pick(list(texts), number, generator)]


def _pick(texts: list[str], number: int, generator: np.random.Generator) -> list[str]:
    rows = generator.permutation(len(texts))[:number]
    return [texts[row] for row in sorted(rows)]


def _ranges(vectors: Vectors, size: int) -> torch.Tensor:
    cut = unit(vectors[:, :size])
    return torch.from_numpy(np.stack([cut.min(axis=0), cut.max(axis=0)]))
