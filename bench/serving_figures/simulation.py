"""Our scheduler against two others on the same made-up traffic: time is simulated, a batch takes what a model says.

Traffic: Poisson requests at 85 % of what the device can do with full batches, heavy-tailed lengths, 64 adapters by
Zipf, one request in fifty is a large one. Others: first come first served up to the token budget, and the shortest text
first.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.records import Encoding, EngineJob, OutputSpec, Sequence, Terms

NUM_TRACES, SECONDS, LOAD = 10, 20.0, 0.85
BUDGET_TOKENS, NUM_ADAPTERS = 2048, 64
FIXED_S, TOKEN_S, SQUARE_S, ADAPTER_S = 1e-3, 5e-6, 1e-9, 1e-5
OUTPUT = OutputSpec(8, Encoding.FLOAT32)


@dataclass(frozen=True, slots=True)
class Request:
    """When it comes, the lengths of its texts, its adapter."""

    at: float
    lengths: list[int]
    adapter: int


class Queue(Protocol):
    """A way to choose batches."""

    def add(self, sequences: list[Sequence], now: float) -> object:
        """Takes a request's texts."""

    def next(self, now: float) -> list[Sequence]:
        """The next batch."""


class Ours:
    """The server's scheduler; its cost model learns as it does there."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(max_batch_tokens=BUDGET_TOKENS, max_batch_texts=256, max_queue_tokens=1 << 40)

    def add(self, sequences: list[Sequence], now: float) -> object:
        """See Queue."""
        return self.scheduler.add(sequences, now)

    def next(self, now: float) -> list[Sequence]:
        """See Queue."""
        return self.scheduler.plan(now).batch


class FirstCome:
    """First come, first served: stops at the first text that does not fit."""

    def __init__(self) -> None:
        self._queue: deque[Sequence] = deque()

    def add(self, sequences: list[Sequence], now: float) -> object:
        """See Queue."""
        return self._queue.extend(sequences)

    def next(self, now: float) -> list[Sequence]:
        """See Queue."""
        batch: list[Sequence] = []
        tokens = 0
        while self._queue and (not batch or tokens + self._queue[0].num_tokens <= BUDGET_TOKENS):
            batch.append(self._queue.popleft())
            tokens += batch[-1].num_tokens
        return batch


class ByLength:
    """The shortest texts first, without regard to how long anyone has waited."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, Sequence]] = []
        self._count = 0

    def add(self, sequences: list[Sequence], now: float) -> object:
        """See Queue."""
        for sequence in sequences:
            self._count += 1
            heapq.heappush(self._queue, (sequence.num_tokens, self._count, sequence))
        return None

    def next(self, now: float) -> list[Sequence]:
        """See Queue."""
        batch: list[Sequence] = []
        tokens = 0
        while self._queue and (not batch or tokens + self._queue[0][0] <= BUDGET_TOKENS):
            batch.append(heapq.heappop(self._queue)[2])
            tokens += batch[-1].num_tokens
        return batch


def simulate(plot: Path | None) -> tuple[float, float, float, float]:
    """p99 over that of first come and by length, and busy seconds of these over ours: medians of the traces."""
    latencies: dict[str, list[np.ndarray]] = {"embedmux": [], "first come": [], "by length": []}
    busy: dict[str, list[float]] = {name: [] for name in latencies}
    for seed in range(NUM_TRACES):
        requests = trace(seed)
        for name, queue in (("embedmux", Ours()), ("first come", FirstCome()), ("by length", ByLength())):
            waited, seconds = run(queue, requests)
            latencies[name].append(waited)
            busy[name].append(seconds)
    tails = {name: np.array([np.percentile(each, 99) for each in found]) for name, found in latencies.items()}
    if plot is not None:
        draw(latencies, plot)
    p99 = [float(np.median(tails["embedmux"] / tails[name])) for name in ("first come", "by length")]
    work = [float(np.median(np.array(busy[name]) / busy["embedmux"])) for name in ("first come", "by length")]
    return p99[0], p99[1], work[0], work[1]


def trace(seed: int) -> list[Request]:
    """Requests of SECONDS, whose work is LOAD of what the device does in that time with full batches."""
    chosen = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, NUM_ADAPTERS + 1)
    found, at = [], 0.0
    while at < SECONDS:
        count = int(chosen.integers(200, 1000)) if chosen.random() < 0.02 else int(chosen.geometric(0.5))
        lengths = np.clip(chosen.lognormal(2.9, 0.9, count), 3, 512).astype(int).tolist()
        found.append(Request(at, lengths, int(chosen.choice(NUM_ADAPTERS, p=weights / weights.sum()))))
        at += chosen.exponential(1.0) * MEAN_WORK_S / LOAD
    return found


def run(queue: Queue, requests: list[Request]) -> tuple[np.ndarray, float]:
    """Seconds from arrival to the last text's answer of each request, and seconds in which the device was busy."""
    finished = np.zeros(len(requests))
    left = [len(request.lengths) for request in requests]
    now = busy = 0.0
    coming = 0
    while coming < len(requests) or any_left(left, coming):
        while coming < len(requests) and requests[coming].at <= now:
            queue.add(sequences_of(requests[coming], coming), now)
            coming += 1
        batch = queue.next(now)
        if not batch:
            if coming == len(requests):
                break
            now = requests[coming].at
            continue
        lengths = [sequence.num_tokens for sequence in batch]
        squares = sum(length * length for length in lengths)
        adapters = len({sequence.slot for sequence in batch})
        seconds = FIXED_S + TOKEN_S * sum(lengths) + SQUARE_S * squares + ADAPTER_S * adapters
        if isinstance(queue, Ours):
            queue.scheduler.costs[0].observe(sum(lengths), squares, seconds)
        now += seconds
        busy += seconds
        for sequence in batch:
            place = sequence.job.id
            left[place] -= 1
            finished[place] = now - requests[place].at
    return finished, busy


def any_left(left: list[int], coming: int) -> bool:
    """Whether a request that has come is not answered."""
    return any(left[:coming])


def sequences_of(request: Request, place: int) -> list[Sequence]:
    """The request as the engine would queue it."""
    offsets = np.cumsum([0, *request.lengths], dtype=np.int32)
    none = np.zeros(len(request.lengths), np.int32)
    job = EngineJob(place, none, offsets, none, OUTPUT, Terms(), memoryview(b""), none, none)
    return [Sequence(job, at, length, request.adapter, request.at) for at, length in enumerate(request.lengths)]


def mean_work_s() -> float:
    """Seconds of work that a request brings on average, in full batches."""
    chosen = np.random.default_rng(0)
    total, count = 0.0, 4000
    for _ in range(count):
        size = int(chosen.integers(200, 1000)) if chosen.random() < 0.02 else int(chosen.geometric(0.5))
        lengths = np.clip(chosen.lognormal(2.9, 0.9, size), 3, 512).astype(int)
        total += float(lengths.sum() * (TOKEN_S + FIXED_S / BUDGET_TOKENS) + SQUARE_S * (lengths**2).sum())
    return total / count


def draw(latencies: dict[str, list[np.ndarray]], path: Path) -> None:
    """The distribution of latencies of all traces together."""
    import matplotlib  # noqa: PLC0415 - only where a picture is wanted

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, found in latencies.items():
        values = np.sort(np.concatenate(found)) * 1e3
        share = 1.0 - np.arange(len(values)) / len(values)
        axes.loglog(values, share, label=name)
    axes.set_xlabel("milliseconds from arrival to answer")
    axes.set_ylabel("share of requests that took longer")
    axes.set_title(f"simulated: {NUM_ADAPTERS} adapters, heavy-tailed lengths, load {LOAD:.0%}, {NUM_TRACES} traces")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


MEAN_WORK_S = mean_work_s()
