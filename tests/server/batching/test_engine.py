"""The engine's promise to whoever submits: one answer for each job, however the threads interleave."""

import sys
import threading
from collections import Counter

import numpy as np

from embedmux.server.batching.engine import Engine
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import EmbedmuxError, EngineFailure
from embedmux.server.records import ANY_TERMS, BASE_MODEL, Encoding, EngineJob, OutputSpec, Sequence

NUM_JOBS = 3000


class NoLeases:
    """The bare model needs none."""

    def lease(self, model: int, handle: int, count: int) -> int:
        return handle

    def release(self, model: int, handle: int, count: int) -> None:
        pass


def compute(sequences: list[Sequence]) -> list[np.ndarray]:
    return [np.ones(1, dtype=np.uint8)] * len(sequences)


def make_job(number: int, num_texts: int = 1) -> EngineJob:
    return EngineJob(
        id=number,
        token_ids=np.zeros(num_texts, np.int32),
        offsets=np.arange(num_texts + 1, dtype=np.int32),
        adapters=np.full(num_texts, BASE_MODEL, np.int32),
        output=OutputSpec(1, Encoding.UINT8),
        terms=ANY_TERMS,
        out=memoryview(bytearray(num_texts)),
        shared=np.zeros(num_texts, np.int32),
        second=np.zeros(num_texts, np.int32),
    )


def test_a_job_that_is_done_before_submit_returns_is_answered_once() -> None:
    """The computation takes no time and threads switch often, so many jobs finish inside their own submit."""
    answers: Counter[int] = Counter()
    all_answered = threading.Event()

    def done(jobs: list[EngineJob]) -> None:
        answers.update(job.id for job in jobs)
        if len(answers) == NUM_JOBS:
            all_answered.set()

    engine = Engine(
        compute, NoLeases(), Scheduler(max_batch_tokens=64, max_batch_texts=64, max_queue_tokens=NUM_JOBS * 2)
    )
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(NUM_JOBS):
            engine.submit(make_job(number), done)
    finally:
        sys.setswitchinterval(interval)
    assert all_answered.wait(30)
    assert engine.close(timeout_s=30)
    assert set(answers.values()) == {1}


def test_a_text_with_an_error_of_its_own_fails_alone_and_in_one_computation() -> None:
    calls = []

    def compute_but_one(sequences: list[Sequence]) -> list[np.ndarray | EmbedmuxError]:
        calls.append(len(sequences))
        return [
            EngineFailure("not finite") if sequence.index == 1 else np.full(1, 7, dtype=np.uint8)
            for sequence in sequences
        ]

    answered = threading.Event()
    engine = Engine(
        compute_but_one, NoLeases(), Scheduler(max_batch_tokens=64, max_batch_texts=64, max_queue_tokens=64)
    )
    job = make_job(1, num_texts=3)
    engine.submit(job, lambda _: answered.set())
    assert answered.wait(30)
    assert engine.close(timeout_s=30)
    assert {index: str(error) for index, error in job.errors.items()} == {1: "not finite"}
    assert bytes(job.out) == b"\7\0\7"
    assert calls == [3]
