"""Texts of different lengths end to end: text i owns the positions from offsets[i] up to offsets[i + 1]."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = int | slice | Sequence[int] | NDArray[np.generic]


def offsets_of(lengths: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """[n + 1] offsets of texts with these lengths."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def chosen_texts(num_texts: int, rows: Rows) -> NDArray[np.int64]:
    """The indices that ``rows`` names, as numpy would index with it; an int is one text. Raises IndexError."""
    return np.atleast_1d(np.arange(num_texts)[rows])


def take(offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the chosen texts' positions were, in order, and the chosen texts' own offsets."""
    lengths = np.diff(offsets)[chosen]
    taken = offsets_of(lengths)
    return np.repeat(offsets[:-1][chosen] - taken[:-1], lengths) + np.arange(taken[-1]), taken
