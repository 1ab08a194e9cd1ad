"""Timing side by side: contenders take turns, so that a change of the machine's speed meets all of them."""

import statistics
import time
from collections.abc import Callable

from rich.progress import track


def interleaved(contenders: dict[str, Callable[[], object]], *, rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every contender runs once before that, uncounted."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in track(range(rounds), description=title):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds of over / under."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
