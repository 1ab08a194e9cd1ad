"""The scheduler alone: time is an argument, so nothing here waits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import Overloaded
from embedmux.server.records import Encoding, EngineJob, OutputSpec, Sequence


def make_job(lengths: list[int], *, now: float = 0.0, deadline: float | None = None, model: int = 0) -> list[Sequence]:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    none = np.zeros(len(lengths), np.int32)
    job = EngineJob(
        1, np.zeros(sum(lengths), np.int32), offsets, np.full(len(lengths), -1, np.int32),
        OutputSpec(8, Encoding.FLOAT32), deadline, memoryview(bytearray(1)), none, none, model,
    )  # fmt: skip
    return [Sequence(job, i, length, -1, now, deadline) for i, length in enumerate(lengths)]


def make_scheduler(**limits: int) -> Scheduler:
    return Scheduler(**{"max_batch_tokens": 100, "max_batch_texts": 8, "max_queue_tokens": 1000, **limits})


def add(scheduler: Scheduler, sequences: list[Sequence]) -> list[Sequence]:
    scheduler.add(sequences, tokens_per_second=1000.0)
    return sequences


def test_a_lone_text_leaves_at_once() -> None:
    scheduler = make_scheduler()
    (text,) = add(scheduler, make_job([5]))
    assert scheduler.plan(0.0).batch == [text]
    assert len(scheduler) == 0
    assert scheduler.queued_tokens == 0


def test_a_text_longer_than_the_budget_is_still_served() -> None:
    scheduler = make_scheduler()
    long, short = add(scheduler, make_job([500, 5]))
    assert scheduler.plan(0.0).batch == [long]
    assert scheduler.plan(0.0).batch == [short]


def test_shorter_texts_fill_what_a_long_one_leaves() -> None:
    scheduler = make_scheduler()
    texts = add(scheduler, make_job([60, 90, 40]))
    assert scheduler.plan(0.0).batch == [texts[0], texts[2]]
    assert scheduler.plan(0.0).batch == [texts[1]]


def test_a_near_deadline_goes_first_and_patience_ends_waiting() -> None:
    scheduler = make_scheduler(max_batch_texts=1)
    (old,) = add(scheduler, make_job([5], now=0.0))
    (urgent,) = add(scheduler, make_job([5], now=0.5, deadline=0.6))
    (later,) = add(scheduler, make_job([5], now=0.5, deadline=30.0))
    assert [scheduler.plan(0.5).batch for _ in range(3)] == [[urgent], [old], [later]]


def test_expired_texts_are_returned_and_never_planned() -> None:
    scheduler = make_scheduler()
    (late,) = add(scheduler, make_job([5], deadline=1.0))
    plan = scheduler.plan(1.0)
    assert plan.expired == [late]
    assert plan.batch == []


def test_overload_refuses_the_whole_job_and_says_how_long_the_queue_is() -> None:
    scheduler = make_scheduler(max_queue_tokens=50)
    add(scheduler, make_job([40]))
    with pytest.raises(Overloaded, match=r"holds 40 tokens, 20 more would pass the limit 50") as caught:
        add(scheduler, make_job([10, 10]))
    assert caught.value.retry_after_s == pytest.approx(0.04)
    assert len(scheduler) == 1


def test_an_empty_queue_takes_a_job_above_the_limit() -> None:
    scheduler = make_scheduler(max_queue_tokens=50)
    add(scheduler, make_job([40, 40]))
    assert len(scheduler) == 2


def test_cancel_drops_only_what_is_queued() -> None:
    scheduler = make_scheduler(max_batch_texts=1)
    first, second = add(scheduler, make_job([5, 6]))
    (other,) = add(scheduler, make_job([7]))
    assert scheduler.plan(0.0).batch == [first]
    assert scheduler.cancel(second.job) == [second]
    assert scheduler.cancel(second.job) == []
    assert scheduler.queued_tokens == 7
    assert scheduler.plan(0.0).batch == [other]


@given(
    jobs=st.lists(
        st.tuples(
            st.lists(st.integers(1, 150), min_size=1, max_size=6),
            st.one_of(st.none(), st.floats(0.0, 3.0)),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_every_text_leaves_exactly_once(jobs: list[tuple[list[int], float | None, bool]]) -> None:
    scheduler = make_scheduler(max_queue_tokens=100_000)
    waiting: set[tuple[int, int]] = set()
    kept: list[Sequence] = []
    for lengths, deadline, is_cancelled in jobs:
        sequences = add(scheduler, make_job(lengths, deadline=deadline))
        kept += sequences  # ids of jobs stay unique while they live
        waiting |= {(id(s.job), s.index) for s in sequences}
        if is_cancelled:
            for dropped in scheduler.cancel(sequences[0].job):
                waiting.remove((id(dropped.job), dropped.index))
    now = 0.0
    while scheduler:
        plan = scheduler.plan(now)
        assert plan.batch or plan.expired, "a plan over a queue that is not empty makes progress"
        assert sum(s.num_tokens for s in plan.batch[1:]) <= scheduler.max_batch_tokens
        assert all(s.deadline is None or s.deadline > now for s in plan.batch)
        for sequence in plan.batch + plan.expired:
            waiting.remove((id(sequence.job), sequence.index))
        now += 0.25
    assert not waiting
    assert scheduler.queued_tokens == 0


def test_a_batch_is_of_the_model_whose_text_is_due_first() -> None:
    scheduler = make_scheduler()
    first = add(scheduler, make_job([10, 10], now=0.0, model=1))
    other = add(scheduler, make_job([10], now=0.1, model=0))
    late = add(scheduler, make_job([10], now=0.2, model=1))
    urgent = add(scheduler, make_job([10], now=0.3, deadline=0.5, model=2))
    assert len(scheduler) == 5
    assert [scheduler.plan(0.4).batch for _ in range(4)] == [urgent, [*first, *late], other, []]
    assert (len(scheduler), scheduler.queued_tokens) == (0, 0)


def test_a_cancelled_job_leaves_the_other_models_alone() -> None:
    scheduler = make_scheduler()
    gone = add(scheduler, make_job([10, 10], model=0))
    stays = add(scheduler, make_job([10], model=1))
    assert scheduler.cancel(gone[0].job) == gone
    assert scheduler.plan(0.0).batch == stays
