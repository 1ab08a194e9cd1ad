"""The scheduler alone: time is an argument, so nothing here waits. A token takes 1 ms, a full batch 0.1 s."""

import pytest
from batching_jobs import add, make_job, make_scheduler
from hypothesis import given
from hypothesis import strategies as st

from embedmux.server.batching.outlook import ANY_SIZE
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import DeadlineExceeded, Overloaded
from embedmux.server.records import Priority, Sequence


def test_a_lone_text_leaves_at_once() -> None:
    scheduler = make_scheduler()
    (text,) = add(scheduler, make_job([5]))
    plan = scheduler.plan(0.0)
    assert plan.batch == [text]
    assert plan.seconds == pytest.approx(0.005)
    assert (len(scheduler), scheduler.queued_tokens) == (0, 0)


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


def test_texts_that_cannot_be_done_in_time_are_returned_and_never_planned() -> None:
    scheduler = make_scheduler()
    (late,) = add(scheduler, make_job([50], deadline=1.0))
    plan = scheduler.plan(0.96)
    assert (plan.expired, plan.batch) == ([late], [])


def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_it_would_take() -> None:
    scheduler = make_scheduler()
    add(scheduler, make_job([90] * 3, deadline=0.3))
    with pytest.raises(
        Overloaded, match=r"50 tokens would be done in 0\.[34]\d\d s, their deadline is in 0\.300 s"
    ) as got:
        add(scheduler, make_job([50], deadline=0.3))
    assert got.value.reason == "deadline"
    assert got.value.retry_after_s == pytest.approx(0.06, abs=0.05)
    with pytest.raises(DeadlineExceeded, match="passed before"):
        add(scheduler, make_job([50], deadline=-0.1))
    add(scheduler, make_job([50], deadline=0.45))
    add(scheduler, make_job([50], deadline=0.06))  # goes ahead of all


def test_a_guess_refuses_nobody() -> None:
    scheduler = Scheduler(max_batch_tokens=100, max_batch_texts=8, max_queue_tokens=1000)
    add(scheduler, make_job([100], deadline=0.001))


def test_overload_refuses_the_whole_job_and_says_how_long_the_queue_is() -> None:
    scheduler = make_scheduler(max_queue_tokens=50)
    add(scheduler, make_job([40]))
    with pytest.raises(Overloaded, match=r"holds 40 interactive tokens, 20 more would pass the limit 50") as caught:
        add(scheduler, make_job([10, 10]))
    assert caught.value.retry_after_s == pytest.approx(0.03)
    assert len(scheduler) == 1


def test_an_empty_queue_takes_a_job_above_the_limit_and_so_does_the_other_class() -> None:
    scheduler = make_scheduler(max_queue_tokens=50)
    add(scheduler, make_job([40, 40], priority=Priority.BULK))
    add(scheduler, make_job([10, 10]))
    assert len(scheduler) == 4


def test_a_full_queue_still_has_room_for_the_other_tenants_part() -> None:
    scheduler = make_scheduler(max_queue_tokens=100, weights={"large": 3.0})
    add(scheduler, make_job([100], tenant="large"))
    add(scheduler, make_job([20], tenant="small"))
    with pytest.raises(Overloaded):
        add(scheduler, make_job([10], tenant="small"))  # a quarter of 100 is its part
    with pytest.raises(Overloaded):
        add(scheduler, make_job([1], tenant="large"))
    for number in range(9):
        add(scheduler, make_job([10], tenant=f"other {number}"))
    with pytest.raises(Overloaded):  # twice the limit holds against any number of tenants
        add(scheduler, make_job([10], tenant="one too many"))


def test_cancel_drops_only_what_is_queued() -> None:
    scheduler = make_scheduler(max_batch_texts=1)
    first, second = add(scheduler, make_job([5, 6]))
    (other,) = add(scheduler, make_job([7]))
    assert scheduler.plan(0.0).batch == [first]
    assert scheduler.cancel(second.job) == [second]
    assert scheduler.cancel(second.job) == []
    assert scheduler.queued_tokens == 7
    assert scheduler.plan(0.0).batch == [other]


def test_a_large_request_gives_way_to_small_ones_that_come_later() -> None:
    scheduler = make_scheduler(max_batch_texts=4, max_queue_tokens=10_000)
    large = add(scheduler, make_job([25] * 40))
    (small,) = add(scheduler, make_job([25], now=0.2))
    assert scheduler.plan(0.2).batch == [*large[:3], small] or small in scheduler.plan(0.3).batch


@pytest.mark.parametrize("weights", [{}, {"a": 3.0, "b": 1.0}, {"a": 0.5, "b": 5.0}])
def test_tenants_that_always_wait_are_served_by_their_weight(weights: dict[str, float]) -> None:
    scheduler = make_scheduler(weights=weights, max_queue_tokens=1_000_000)
    served = {"a": 0, "b": 0}
    for tenant, length in (("a", 20), ("b", 7)):
        for _ in range(6000):
            add(scheduler, make_job([length], tenant=tenant))
    for step in range(600):
        for sequence in scheduler.plan(step * 0.1).batch:
            served[sequence.job.terms.tenant] += sequence.num_tokens
    assert served["a"] / served["b"] == pytest.approx(weights.get("a", 1.0) / weights.get("b", 1.0), rel=0.1)


def test_a_tenant_that_comes_back_is_owed_nothing() -> None:
    scheduler = make_scheduler(max_batch_texts=4)
    for _ in range(12):
        add(scheduler, make_job([25], tenant="stays"))
    for step in range(2):
        scheduler.plan(step * 0.1)
    for _ in range(12):
        add(scheduler, make_job([25], tenant="comes"))
    tenants = [each.job.terms.tenant for step in range(6) for each in scheduler.plan(1 + step * 0.1).batch]
    assert 4 <= tenants[: len(tenants) // 2].count("comes") <= 11


def test_bulk_gets_its_share_and_what_interactive_work_leaves() -> None:
    scheduler = make_scheduler(bulk_share=0.2, max_queue_tokens=100_000)
    for _ in range(200):
        add(scheduler, make_job([50, 50], priority=Priority.BULK))
        add(scheduler, make_job([50, 50]))
    firsts = [scheduler.plan(step * 0.1).batch[0].job.terms.priority for step in range(100)]
    assert firsts.count(Priority.BULK) == pytest.approx(20, abs=2)
    while scheduler:
        priority = {each.job.terms.priority for each in scheduler.plan(20.0).batch}
        assert len(priority) == 1


def test_interactive_work_that_comes_during_a_bulk_job_is_next() -> None:
    scheduler = make_scheduler(max_queue_tokens=100_000)
    for _ in range(200):
        add(scheduler, make_job([100], priority=Priority.BULK))
    for step in range(50):
        scheduler.plan(step * 0.1)
    add(scheduler, make_job([10], now=5.0))
    assert scheduler.plan(5.0).batch[0].job.terms.priority is Priority.INTERACTIVE


@given(
    jobs=st.lists(
        st.tuples(
            st.lists(st.integers(1, 150), min_size=1, max_size=6),
            st.one_of(st.none(), st.floats(0.0, 3.0)),
            st.booleans(),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from(list(Priority)),
            st.integers(0, 2),
        ),
        max_size=12,
    )
)
def test_every_text_leaves_exactly_once(
    jobs: list[tuple[list[int], float | None, bool, str, Priority, int]],
) -> None:
    scheduler = make_scheduler(max_queue_tokens=100_000)
    waiting: set[tuple[int, int]] = set()
    kept: list[Sequence] = []
    for lengths, deadline, is_cancelled, tenant, priority, model in jobs:
        sequences = make_job(lengths, deadline=deadline, tenant=tenant, priority=priority, model=model)
        try:
            add(scheduler, sequences)
        except (Overloaded, DeadlineExceeded):
            continue
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
        assert len({(s.job.model, s.job.terms.priority) for s in plan.batch}) <= 1
        assert all(s.job.terms.deadline is None or s.job.terms.deadline > now for s in plan.batch)
        for sequence in plan.batch + plan.expired:
            waiting.remove((id(sequence.job), sequence.index))
        now += 0.25
    assert not waiting
    assert scheduler.queued_tokens == 0
    assert {(each.room_tokens, each.done_at) for each in scheduler.pressure(now)} == {(ANY_SIZE, now)}


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


def test_an_idle_device_tries_what_it_thinks_is_too_late_and_so_learns() -> None:
    scheduler = make_scheduler()
    (tried,) = add(scheduler, make_job([90], deadline=0.091))
    assert scheduler.plan(0.0).batch == [tried]
    with pytest.raises(Overloaded):
        add(scheduler, make_job([90], now=0.01, deadline=0.1))
    add(scheduler, make_job([90], now=0.1, deadline=0.15))


def test_a_request_of_many_batches_keeps_no_small_one_out_and_the_other_way_round() -> None:
    scheduler = make_scheduler(max_queue_tokens=300)
    add(scheduler, make_job([100] * 40))
    for _ in range(6):
        add(scheduler, make_job([50]))
    with pytest.raises(Overloaded, match="holds 300 interactive tokens, 50 more"):
        add(scheduler, make_job([50]))
    with pytest.raises(Overloaded, match="holds 4000 interactive tokens, 200 more"):
        add(scheduler, make_job([100, 100]))
    assert scheduler.cancel(next(iter(scheduler._shares[Priority.INTERACTIVE].lines.values()))._heaps[0][0][2].job)
    add(scheduler, make_job([100, 100]))


def test_a_fit_that_noise_spoils_does_not_make_what_waits_look_endless() -> None:
    scheduler = make_scheduler(max_queue_tokens=100_000)
    for _ in range(50):
        add(scheduler, make_job([100]))
    for seconds in (0.5, 0.0001, 0.5, 0.5, 0.5, 0.5):
        scheduler.costs[0].observe(16, 256, seconds)
    assert all(pressure.done_at < 200.0 for pressure in scheduler.pressure(0.0))
