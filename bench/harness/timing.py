"""Timing side by side: contenders take turns, so that a change of the machine's speed meets all of them."""

import random
import statistics
import time
from collections.abc import Callable

from rich.progress import track


def interleaved(contenders: dict[str, Callable[[], object]], *, rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every contender runs once before that, uncounted.

    The order changes from round to round: who always followed the same other would find its caches, warm or cold.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in track(range(rounds), description=title):
        for name in random.Random(turn).sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds of over / under."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
