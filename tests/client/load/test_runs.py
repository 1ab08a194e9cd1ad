"""Loads on the fake server: open and closed loops, stalls, refusals, limits, early ends."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from multiprocessing import active_children

import pytest

from embedmux.client.load.answers import Answers, merge
from embedmux.client.load.generate import generate
from embedmux.client.load.plan import Plan
from embedmux.client.load.processes import LoadFailed, run
from embedmux.client.load.sender import Sender
from embedmux.client.load.summary import Summary, summarise


async def sent(plan: Plan, *, stop_after_s: float | None = None) -> Answers:
    """What a plan gets, in this process."""
    sender, stop = Sender(plan), asyncio.Event()
    await sender.connect()
    if stop_after_s is not None:
        asyncio.get_running_loop().call_later(stop_after_s, stop.set)
    try:
        return await generate(plan, sender, started=time.perf_counter() + 0.01, stop=stop)
    finally:
        await sender.close()


async def summary_of(plan: Plan) -> Summary:
    return summarise(await sent(plan), plan, slo_ms=100)


@pytest.fixture
def stalling(fake, monkeypatch):
    """The fake, which answers nothing from 0.2 to 1.0 s after ``arm`` was called."""
    is_open = threading.Event()
    is_open.set()

    def failure(request: object, gone: threading.Event) -> None:
        is_open.wait(5)

    def arm() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, is_open.clear)
        loop.call_later(1.0, is_open.set)

    monkeypatch.setattr(fake, "failure", failure)

    fake.arm = arm
    yield fake
    is_open.set()


async def test_an_open_loop_shows_a_stall_to_all_that_were_due_in_it_and_a_closed_loop_hides_it(stalling) -> None:
    stalling.arm()
    plan = Plan(target=stalling.address, rate=120.0, duration_s=1.2, warm_up_s=0.0)
    seen, hidden = await asyncio.gather(summary_of(plan), summary_of(replace(plan, rate=None, workers=1)))
    assert seen.latency_ms["p99"] > 700 and seen.latency_ms["max"] > 750
    # Two thirds of all requests were due in the stall, and waited for 0.4 s of it on average.
    assert seen.latency_ms["p90"] > 500 and seen.mean_ms > 150
    assert seen.goodput < 0.75 * seen.texts_rate
    assert hidden.offered_rate is None
    assert hidden.latency_ms["max"] > 600 and hidden.latency_ms["p90"] < 200


async def test_a_closed_loop_has_as_many_under_way_as_workers(fake) -> None:
    plan = Plan(target=fake.address, workers=3, duration_s=0.4, warm_up_s=0.0, texts=("slow 0.02",))
    found = await summary_of(plan)
    assert fake.max_under_way == 3
    assert 20 < found.num_requests <= 3 * (0.4 / 0.02 + 1)


async def test_the_warm_up_is_sent_and_not_measured(fake) -> None:
    found = await summary_of(Plan(target=fake.address, rate=200.0, duration_s=0.3, warm_up_s=0.2, seed=4))
    assert len(fake.requests) > found.num_requests
    assert found.num_requests == found.statuses["OK"] == found.num_texts_ok
    assert found.offered_rate == pytest.approx(found.num_requests / 0.3)


async def test_refusals_are_counted_by_status_and_not_tried_again(fake) -> None:
    texts = ("fine", "refuse NOT_FOUND", "overload 1000000", "fail INVALID_ARGUMENT")
    plan = Plan(target=fake.address, rate=300.0, duration_s=0.6, warm_up_s=0.0, texts=texts, connections=2)
    found = await summary_of(plan)
    assert set(found.statuses) == {"OK", "NOT_FOUND", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}
    assert sum(found.statuses.values()) == found.num_requests == len(fake.requests)
    assert found.messages["NOT_FOUND"] == "refused: refuse NOT_FOUND"
    assert found.num_push_backs == found.statuses["RESOURCE_EXHAUSTED"] and found.push_back_p50_ms == 200
    assert found.failed_texts == {"INVALID_ARGUMENT": found.statuses["INVALID_ARGUMENT"]}
    assert found.num_texts_ok == found.statuses["OK"]


async def test_a_failed_text_does_not_fail_its_request(fake) -> None:
    texts = ("a b c d e f g h i j", "fail NOT_FOUND")
    plan = Plan(target=fake.address, rate=100.0, duration_s=0.4, warm_up_s=0.0, texts=texts, texts_per_request=20)
    found = await summary_of(plan)
    assert found.statuses == {"OK": found.num_requests}
    assert found.failed_texts["NOT_FOUND"] == found.num_texts - found.num_texts_ok
    assert found.num_truncated == found.num_texts_ok  # the fake reads eight words


async def test_a_timeout_is_a_status(fake) -> None:
    plan = Plan(target=fake.address, rate=20.0, duration_s=0.3, warm_up_s=0.0, texts=("slow 5",), timeout_s=0.1)
    found = await summary_of(plan)
    assert found.statuses == {"DEADLINE_EXCEEDED": found.num_requests} and found.latency_ms == {}


async def test_what_exceeds_the_limit_is_counted_as_not_sent(fake) -> None:
    plan = Plan(target=fake.address, rate=200.0, duration_s=0.4, warm_up_s=0.0, texts=("slow 0.1",), max_in_flight=2)
    found = await summary_of(plan)
    assert fake.max_under_way <= 2
    assert found.num_not_sent == found.num_requests - len(fake.requests) > 0
    assert any("were not sent, since 2 were under way" in warning for warning in found.warnings)


@pytest.mark.parametrize("rate", [200.0, None])
async def test_an_early_end_keeps_what_was_measured(fake, rate: float | None) -> None:
    plan = Plan(target=fake.address, rate=rate, workers=4, duration_s=60, warm_up_s=0.1, texts=("slow 0.05",))
    answers = await sent(plan, stop_after_s=0.5)
    found = summarise(answers, plan, slo_ms=100)
    assert found.measured_s == pytest.approx(0.4, abs=0.2)
    assert found.num_texts_ok > 0 and found.num_cut_off > 0


def test_processes_are_merged_and_ctrl_c_ends_them_with_their_answers(fake) -> None:
    plan = Plan(target=fake.address, rate=100.0, duration_s=60, warm_up_s=0.0, num_processes=2)
    states = []

    def watch(state) -> None:
        states.append(state)
        if len(states) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    done = run(plan, watch)
    assert done.is_interrupted and len(done.answers.cpu_shares) == 2
    assert states[2].num_ok > 0
    assert summarise(done.answers, plan, slo_ms=100).num_texts_ok >= states[2].num_ok
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_cannot_connect_says_why() -> None:
    with pytest.raises(LoadFailed, match="no server answers at"):
        run(Plan(target="127.0.0.1:1", rate=1.0))


def test_a_process_that_dies_ends_the_run_with_its_exit_code(fake) -> None:
    with pytest.raises(LoadFailed, match="a load process ended with exit code -9"):
        run(Plan(target=fake.address, rate=50.0), lambda progress: active_children()[0].kill())


async def test_merged_answers_are_those_of_all(fake) -> None:
    plan = Plan(target=fake.address, rate=100.0, duration_s=0.2, warm_up_s=0.0, texts=("fine", "refuse NOT_FOUND"))
    one, two = await asyncio.gather(sent(plan), sent(plan))
    both = merge([one, two])
    assert len(both.code) == len(one.code) + len(two.code)
    assert both.cpu_shares == (*one.cpu_shares, *two.cpu_shares) and "NOT_FOUND" in both.messages
