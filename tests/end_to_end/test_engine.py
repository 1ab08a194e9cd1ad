"""Law 7 in the engine: every text is answered, whatever the computation does, and expired ones cost nothing."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from embedmux.server.batching.engine import Compute, Engine
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import (
    Cancelled,
    DeadlineExceeded,
    EmbedmuxError,
    EngineFailure,
    NotFound,
    Overloaded,
    Unavailable,
)
from embedmux.server.records import Encoding, EngineJob, OutputSpec, Sequence, Terms

OUTPUT = OutputSpec(1, Encoding.UINT8)
POISON, UNLOADED = 13, 404


class Leases:
    """Slots equal handles; counts what is out."""

    def __init__(self) -> None:
        self.out = 0
        self._lock = threading.Lock()

    def lease(self, model: int, handle: int, count: int) -> int:
        if handle == UNLOADED:
            raise NotFound("it was unloaded")
        with self._lock:
            self.out += count
        return handle

    def release(self, model: int, handle: int, count: int) -> None:
        with self._lock:
            self.out -= count


class Bench:
    """An engine over a computation of the test's own; a text is one token, its answer that token's value."""

    def __init__(self, compute: Compute, **limits: int) -> None:
        self.leases = Leases()
        asked = {"max_batch_tokens": 64, "max_batch_texts": 64, "max_queue_tokens": 1000, **limits}
        self.engine = Engine(compute, self.leases, Scheduler(**asked))

    def submit(
        self, values: list[int], *, handles: list[int] | None = None, deadline: float | None = None
    ) -> tuple[EngineJob, threading.Event]:
        answered = threading.Event()
        job = EngineJob(
            id=1,
            token_ids=np.array(values, dtype=np.int32),
            offsets=np.arange(len(values) + 1, dtype=np.int32),
            adapters=np.array(handles or [-1] * len(values), dtype=np.int32),
            output=OUTPUT,
            terms=Terms(deadline),
            out=memoryview(bytearray(len(values))),
            shared=np.zeros(len(values), dtype=np.int32),
            second=np.zeros(len(values), dtype=np.int32),
        )
        self.engine.submit(job, lambda _: answered.set())
        return job, answered


def value_of(sequence: Sequence) -> int:
    return int(sequence.job.token_ids[sequence.job.offsets[sequence.index]])


def answer(sequences: list[Sequence]) -> list[np.ndarray]:
    return [np.array([value_of(sequence)], dtype=np.uint8) for sequence in sequences]


def held_until(event: threading.Event, started: threading.Event, seen: list[int]) -> Compute:
    """A computation that waits for ``event`` in every batch and notes what it computed."""

    def compute(sequences: list[Sequence]) -> list[np.ndarray]:
        started.set()
        assert event.wait(30)
        seen.extend(map(value_of, sequences))
        return answer(sequences)

    return compute


@pytest.fixture
def held() -> tuple[Bench, Callable[[], None], list[int]]:
    """An engine that is busy with the text 1 until told to go on, and what it has computed."""
    go, started, seen = threading.Event(), threading.Event(), []
    bench = Bench(held_until(go, started, seen), max_queue_tokens=8)
    bench.submit([1])
    assert started.wait(30)
    return bench, go.set, seen


@pytest.mark.parametrize("place", [0, 5, 15])
def test_a_poisoned_batch_is_halved_until_only_the_guilty_text_fails(place: int) -> None:
    sizes = []

    def compute(sequences: list[Sequence]) -> list[np.ndarray]:
        sizes.append(len(sequences))
        if POISON in map(value_of, sequences):
            raise RuntimeError("poison")
        return answer(sequences)

    bench = Bench(compute)
    values = list(range(100, 116))
    values[place] = POISON
    job, answered = bench.submit(values)
    assert answered.wait(30)
    assert list(job.errors) == [place]
    assert isinstance(job.errors[place], EngineFailure)
    assert "poison" in str(job.errors[place])
    values[place] = 0
    assert list(job.out) == values
    assert len(sizes) <= 1 + 2 * 4, "sixteen texts are halved four times"
    job, answered = bench.submit([7])
    assert answered.wait(30)
    assert (list(job.out), job.errors) == ([7], {})
    assert bench.engine.close(30)
    assert bench.leases.out == 0


def test_a_computation_that_always_fails_answers_every_text() -> None:
    def compute(_: list[Sequence]) -> list[np.ndarray]:
        raise MemoryError("no memory")

    bench = Bench(compute)
    jobs = [bench.submit(list(range(9))) for _ in range(5)]
    for job, answered in jobs:
        assert answered.wait(30)
        assert sorted(job.errors) == list(range(9))
    assert bench.engine.close(30)
    assert bench.leases.out == 0


def test_an_expired_text_is_not_computed(held: tuple[Bench, Callable[[], None], list[int]]) -> None:
    bench, go, seen = held
    late, late_answered = bench.submit([2], deadline=time.monotonic() - 1)
    soon, soon_answered = bench.submit([3], deadline=time.monotonic() + 60)
    go()
    assert late_answered.wait(30)
    assert soon_answered.wait(30)
    assert isinstance(late.errors[0], DeadlineExceeded)
    assert (list(soon.out), soon.errors) == ([3], {})
    assert seen == [1, 3]
    assert bench.engine.close(30)


def test_what_is_cancelled_refused_or_unloaded_is_answered_too(
    held: tuple[Bench, Callable[[], None], list[int]],
) -> None:
    bench, go, seen = held
    dropped, dropped_answered = bench.submit([2, 3])
    bench.engine.cancel(dropped)
    kept, kept_answered = bench.submit([4, 5, 6], handles=[-1, UNLOADED, 7])
    too_many, too_many_answered = bench.submit(list(range(7)))
    assert dropped_answered.is_set()
    assert too_many_answered.is_set()
    go()
    assert kept_answered.wait(30)
    assert bench.engine.close(30)
    after, after_answered = bench.submit([9])
    assert after_answered.is_set()
    assert kinds(dropped) == [Cancelled, Cancelled]
    assert kinds(too_many) == [Overloaded] * 7
    assert kinds(after) == [Unavailable]
    assert {index: type(error) for index, error in kept.errors.items()} == {1: NotFound}
    assert list(kept.out) == [4, 0, 6]
    assert sorted(seen) == [1, 4, 6]
    assert bench.leases.out == 0


def kinds(job: EngineJob) -> list[type[EmbedmuxError]]:
    """The kinds of errors, by text."""
    return [type(error) for _, error in sorted(job.errors.items())]
