"""Texts that are the same are computed once, and everybody gets the same bits; who waits for another is never lost."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from embedmux.server.batching.engine import Engine
from embedmux.server.batching.repeats import Repeats
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import Cancelled, DeadlineExceeded, EmbedmuxError, EngineFailure
from embedmux.server.records import BASE_MODEL, Encoding, EngineJob, OutputSpec, Sequence, Terms

OUTPUT = OutputSpec(1, Encoding.UINT8)


class NoLeases:
    """The bare model needs none."""

    def lease(self, model: int, handle: int, count: int) -> int:
        return handle

    def release(self, model: int, handle: int, count: int) -> None:
        pass


class Bench:
    """An engine that computes nothing until told to go on; a text is one token, its row that token and a count."""

    def __init__(self, repeats: Repeats, *, fails: int | None = None) -> None:
        self.go, self.started = threading.Event(), threading.Event()
        self.computed: list[int] = []
        self._fails = fails
        scheduler = Scheduler(max_batch_tokens=1, max_batch_texts=1, max_queue_tokens=1000)
        self.engine = Engine(self.compute, NoLeases(), scheduler, repeats=repeats)

    def compute(self, batch: list[Sequence]) -> list[np.ndarray | EmbedmuxError]:
        self.started.set()
        assert self.go.wait(30)
        values = [int(each.job.token_ids[each.index]) for each in batch]
        self.computed += values
        return [EngineFailure("no") if value == self._fails else np.array([value], dtype=np.uint8) for value in values]

    def submit(self, *values: int, deadline: float | None = None, handle: int = BASE_MODEL, tenant: str = "") -> "Job":
        return Job(self.engine, values, deadline, handle, tenant)


class Job:
    """A job and its answer."""

    def __init__(self, engine: Engine, values: tuple[int, ...], deadline: float | None, handle: int, tenant: str):
        count = len(values)
        none = np.zeros(count, np.int32)
        self.answers = 0
        self.answered = threading.Event()
        self.job = EngineJob(
            id=1, token_ids=np.array(values, np.int32), offsets=np.arange(count + 1, dtype=np.int32),
            adapters=np.full(count, handle, np.int32), output=OUTPUT, terms=Terms(deadline, tenant),
            out=memoryview(bytearray(count)), shared=none, second=none,
        )  # fmt: skip
        engine.submit(self.job, self._done)

    def _done(self, jobs: list[EngineJob]) -> None:
        assert jobs.count(self.job) == 1
        self.answers += 1
        self.answered.set()

    def result(self) -> bytes:
        assert self.answered.wait(30)
        return bytes(self.job.out)


def test_the_same_text_in_flight_is_computed_once_and_another_adapters_is_not() -> None:
    bench = Bench(Repeats())
    first, twice, other = bench.submit(7), bench.submit(7, 8, 7), bench.submit(7, handle=3)
    bench.go.set()
    assert (first.result(), twice.result(), other.result()) == (b"\7", b"\7\x08\7", b"\7")
    assert Counter(bench.computed) == {7: 2, 8: 1}
    assert bench.submit(7).result() == b"\7"  # nothing is kept
    assert Counter(bench.computed) == {7: 3, 8: 1}
    assert bench.engine.close(30)
    assert [job.answers for job in (first, twice, other)] == [1, 1, 1]


def test_rows_are_kept_up_to_their_bytes() -> None:
    repeats = Repeats(is_coalescing=False, cache_bytes=2000)
    bench = Bench(repeats)
    bench.go.set()
    for value in (1, 2, 1, 1, 2):
        assert bench.submit(value).result() == bytes([value])
    assert Counter(bench.computed) == {1: 1, 2: 1}
    assert (repeats.num_hits, repeats.num_misses) == (3, 2)
    for value in range(10, 30):
        bench.submit(value).result()
    assert repeats.used_bytes <= 2000
    assert bench.submit(1).result() == b"\1"
    assert Counter(bench.computed)[1] == 2
    assert bench.engine.close(30)


def test_who_waits_for_a_text_that_is_cancelled_is_served_in_its_place() -> None:
    bench = Bench(Repeats())
    bench.submit(1)
    assert bench.started.wait(30)
    leader, same = bench.submit(5, 5), bench.submit(5)
    bench.engine.cancel(leader.job)
    assert leader.answered.wait(30)
    assert all(isinstance(error, Cancelled) for error in leader.job.errors.values())
    bench.go.set()
    assert same.result() == b"\5"
    assert bench.engine.close(30)


def test_a_follower_may_be_cancelled_alone() -> None:
    bench = Bench(Repeats())
    bench.submit(1)
    assert bench.started.wait(30)
    leader, same = bench.submit(5), bench.submit(5)
    bench.engine.cancel(same.job)
    assert same.answered.wait(30)
    assert isinstance(same.job.errors[0], Cancelled)
    bench.go.set()
    assert leader.result() == b"\5"
    assert bench.computed == [1, 5]
    assert bench.engine.close(30)


def test_a_deadline_holds_for_whoever_has_it() -> None:
    bench = Bench(Repeats())
    bench.submit(1)
    assert bench.started.wait(30)
    hurried, patient = bench.submit(5, deadline=time.monotonic() + 0.2), bench.submit(5)
    time.sleep(0.3)
    bench.go.set()
    assert patient.result() == b"\5"
    assert hurried.answered.wait(30)
    assert isinstance(hurried.job.errors[0], DeadlineExceeded)
    assert bench.engine.close(30)


def test_an_interactive_text_does_not_wait_in_another_tenants_line() -> None:
    repeats = Repeats()
    bench = Bench(repeats)
    bench.submit(1)
    assert bench.started.wait(30)
    one, other = bench.submit(5, tenant="a"), bench.submit(5, tenant="b")
    bench.go.set()
    assert (one.result(), other.result()) == (b"\5", b"\5")
    assert Counter(bench.computed)[5] == 2
    assert bench.engine.close(30)


def test_a_failure_is_that_of_all_who_wait() -> None:
    bench = Bench(Repeats(cache_bytes=10_000), fails=5)
    first, same = bench.submit(5), bench.submit(5, 6)
    bench.go.set()
    same.result()
    assert first.answered.wait(30)
    assert [str(job.job.errors[0]) for job in (first, same)] == ["no", "no"]
    assert list(same.job.errors) == [0]
    assert bench.submit(5).answered.wait(30)
    assert Counter(bench.computed)[5] == 2, "a failure is not kept"
    assert bench.engine.close(30)


def test_what_did_not_fit_into_memory_makes_batches_smaller() -> None:
    sizes: list[int] = []

    def compute(batch: list[Sequence]) -> list[np.ndarray]:
        sizes.append(len(batch))
        if len(batch) > 10:
            raise MemoryError("out of memory")
        return [np.ones(1, np.uint8)] * len(batch)

    scheduler = Scheduler(max_batch_tokens=40, max_batch_texts=100, max_queue_tokens=1000)
    engine = Engine(compute, NoLeases(), scheduler)
    job = Job(engine, tuple(range(100)), None, BASE_MODEL, "")
    assert job.result() == b"\1" * 100
    assert not job.job.errors
    assert scheduler.max_batch_tokens <= 20
    assert sizes[0] == pytest.approx(40, abs=1)
    assert engine.close(30)
