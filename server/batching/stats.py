"""What the engine counts of its batches; the front shows it as metrics. Plain numbers, since it crosses as JSON."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ERROR = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0)


class Histogram:
    """Counts by upper bound, the last one for all beyond; and the sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, values: Iterable[float]) -> None:
        """Counts every value."""
        for value in values:
            self.counts[bisect.bisect_left(self.bounds, value)] += 1
            self.sum += value

    def as_dict(self) -> dict[str, Any]:
        """bounds, counts (one more than bounds), sum."""
        return {"bounds": list(self.bounds), "counts": self.counts, "sum": self.sum}


class Stats:
    """Counters since the engine's start. ``model`` is its place among the engine's."""

    def __init__(self) -> None:
        self._queue: defaultdict[tuple[int, str], Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._compute: defaultdict[int, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._fill: defaultdict[int, Histogram] = defaultdict(lambda: Histogram(FILL))
        self._error: defaultdict[int, Histogram] = defaultdict(lambda: Histogram(ERROR))
        self._counts: defaultdict[tuple[int, str], int] = defaultdict(int)

    def batch(
        self, model: int, priority: str, waits: list[float], num_tokens: int, fill: float, seconds: float
    ) -> None:
        """A batch that was computed: seconds that each text had waited, ``fill`` of its budget, seconds it took."""
        self._queue[model, priority].add(waits)
        self._compute[model].add((seconds,))
        self._fill[model].add((fill,))
        self._counts[model, "texts"] += len(waits)
        self._counts[model, "tokens"] += num_tokens
        self._counts[model, "batches"] += 1

    def count(self, model: int, what: str, number: int) -> None:
        """Texts that were expired, cancelled, failed or halved, and requests that were refused (by reason)."""
        if number:
            self._counts[model, what] += number

    def answered(self, model: int, expected_s: float, actual_s: float) -> None:
        """A request that was answered so many seconds after it came, and when that was expected."""
        self._error[model].add((abs(expected_s - actual_s) / max(actual_s, 1e-9),))

    def as_dict(self) -> dict[str, Any]:
        """Everything, by name and model."""
        return {
            "queue_seconds": [[model, name, each.as_dict()] for (model, name), each in list(self._queue.items())],
            "compute_seconds": [[model, each.as_dict()] for model, each in list(self._compute.items())],
            "batch_fill": [[model, each.as_dict()] for model, each in list(self._fill.items())],
            "prediction_error": [[model, each.as_dict()] for model, each in list(self._error.items())],
            "counts": [[model, name, number] for (model, name), number in list(self._counts.items())],
        }
