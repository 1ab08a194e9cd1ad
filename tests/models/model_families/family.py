"""What a family module offers: a builder of checkpoint folders, a reference that reads them, and mutants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Size = Literal["tiny", "full"]  # full: the real shape up to 0.6B parameters, for benchmarks only
Role = Literal["query", "document"]
Vectors = NDArray[np.floating]


class Reference(Protocol):
    """The independent implementation of one folder. A family has those methods that its kind and outputs ask for.

    One text at a time, in float32 or better, with eager attention. What can go wrong is read from the folder, so that
    an edited copy is computed with its error. Families with an instruction template also take ``instruction``.
    """

    def token_ids(self, text: str, *, task: str | None = None, role: Role | None = None) -> list[int]:
        """Exactly what the model must read, prompt and special tokens included."""

    def embed(self, texts: list[str], *, task: str | None = None, role: Role | None = None) -> Vectors:
        """[n, d], L2-normalised."""

    def sparse(self, text: str) -> dict[int, float]:
        """Token id -> weight, for families with a sparse output."""

    def tokens(self, text: str, role: Role) -> Vectors:
        """[tokens with a vector, d], for families with late interaction."""

    def pair_ids(self, query: str, document: str) -> list[int]:
        """Exactly what a reranker must read, special tokens included."""

    def score(self, query: str, documents: list[str]) -> Vectors:
        """[n] raw logits of a reranker, before any temperature or activation."""


@dataclass(frozen=True)
class Family:
    """One row of the table of models.

    ``build(folder, size, seed)`` writes the directory, which it creates. ``mutants`` edit a copy of the directory in
    place, so that the reference, and a server that believed it, serve it wrongly. ``tasks`` are those the folder brings
    adapters for, ``roles`` those that have prompts of their own; None among them stands for none given.
    """

    name: str
    kind: Literal["embedder", "reranker"]
    build: Callable[[Path, Size, int], None]
    reference: Callable[[Path], Reference]
    mutants: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    tasks: tuple[str | None, ...] = (None,)
    roles: tuple[Role | None, ...] = (None,)
    outputs: tuple[str, ...] = ("dense",)
    has_full: bool = False
    is_refused: bool = False  # by name, since what it computes is not established
