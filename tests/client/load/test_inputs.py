"""What a load sends, and when: arrivals, texts, tasks, and the parts of several processes. All from a seed."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from embedmux.client.load.arrivals import call_at, poisson_arrivals
from embedmux.client.load.mix import Share, default_mix, parse_share
from embedmux.client.load.plan import Plan
from embedmux.client.load.texts import made_texts, sampled_texts
from embedmux.client.load.words import WORDS
from embedmux.client.records import model_info
from embedmux.proto import server_pb2, types_pb2
from embedmux.server.errors import InvalidRequest

OBEYED = {"fail", "refuse", "overload", "slow", "restart"}  # the fake server does what such a first word says
MIX = (Share("retrieval", "query", 3.0), Share(None, None, 1.0))


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson_arrivals(500.0, 200.0, np.random.default_rng(3))
    gaps, each_second = np.diff(arrivals), np.histogram(arrivals, bins=200, range=(0, 200))[0]
    assert abs(len(arrivals) - 100_000) < 5 * np.sqrt(100_000)
    assert gaps.min() >= 0 and arrivals[0] >= 0 and arrivals[-1] <= 200
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.02)  # exponential
    assert np.mean(gaps > gaps.mean()) == pytest.approx(np.exp(-1), abs=0.01)
    assert each_second.var() / each_second.mean() == pytest.approx(1, abs=0.5)


def test_a_seed_repeats_arrivals_and_requests_and_another_does_not() -> None:
    plan = Plan(target="", rate=50.0, seed=1, mix=MIX, duration_s=5, texts_per_request=2)

    def sent(plan: Plan) -> list[bytes]:
        return [request.SerializeToString() for request in itertools.islice(plan.requests(), 40)]

    assert plan.arrivals() == plan.arrivals() and sent(plan) == sent(plan)
    other = replace(plan, seed=2)
    assert plan.arrivals() != other.arrivals() and not set(sent(plan)) & set(sent(other))


def test_processes_share_the_rate_and_send_different_texts() -> None:
    plan = Plan(target="", rate=90.0, workers=8, connections=2, max_in_flight=10, num_processes=3)
    parts = plan.parts()
    assert [part.rate for part in parts] == [30.0] * 3
    assert [part.workers for part in parts] == [3, 3, 2]
    assert [part.connections for part in parts] == [1, 1, 1]
    assert sum(part.max_in_flight for part in parts) == 10
    texts = [
        text.text for part in parts for request in itertools.islice(part.requests(), 300) for text in request.texts
    ]
    assert len(set(texts)) == 900
    assert parts[0].arrivals() != parts[1].arrivals()


def test_made_texts_differ_and_have_lengths_like_real_ones() -> None:
    assert len(set(WORDS)) == len(WORDS) and not OBEYED & set(WORDS)
    for name, low, high in (("short", 5, 7), ("long", 80, 100)):
        texts = list(itertools.islice(made_texts(name, np.random.default_rng(5)), 4000))
        lengths = [len(text.split()) for text in texts]
        assert len(set(texts)) == len(texts)
        assert low <= np.median(lengths) <= high and max(lengths) > 2 * np.median(lengths) * 0.9
    mixed = [len(text.split()) for text in itertools.islice(made_texts("mixed", np.random.default_rng(5)), 4000)]
    assert np.mean(np.array(mixed) >= 41) == pytest.approx(0.2, abs=0.03)


def test_own_texts_are_drawn_with_equal_chance() -> None:
    drawn = Counter(itertools.islice(sampled_texts(["a", "b"], np.random.default_rng(1)), 2000))
    assert set(drawn) == {"a", "b"} and abs(drawn["a"] - 1000) < 150


def test_tasks_come_by_their_weights() -> None:
    plan = Plan(target="", mix=MIX, texts=("x",), texts_per_request=4)
    texts = [text for request in itertools.islice(plan.requests(), 500) for text in request.texts]
    queries = [text for text in texts if text.instruction.task]
    assert len(queries) / len(texts) == pytest.approx(0.75, abs=0.04)
    assert {(text.instruction.task, text.instruction.role) for text in queries} == {("retrieval", types_pb2.ROLE_QUERY)}


@pytest.mark.parametrize(
    ("argument", "share"),
    [
        ("retrieval:query=3", Share("retrieval", "query", 3.0)),
        ("classification=0.5", Share("classification", None, 0.5)),
        ("retrieval.query", Share("retrieval.query", None, 1.0)),
        ("none", Share(None, None, 1.0)),
    ],
)
def test_shares_are_read(argument: str, share: Share) -> None:
    assert parse_share(argument) == share
    assert share.name == argument.partition("=")[0]


@pytest.mark.parametrize("argument", ["", "=3", "a=0", "a=x", "a=inf", "a=nan", "a:passage", "a:"])
def test_what_is_no_share_is_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest, match="task '"):
        parse_share(argument)


def test_the_default_mix_has_every_task_and_both_sides_of_those_with_two_prompts() -> None:
    tasks = [
        server_pb2.TaskInfo(name="retrieval", query_prompt="Query: ", document_prompt="Document: "),
        server_pb2.TaskInfo(name="clustering", query_prompt="same", document_prompt="same"),
    ]
    mix = default_mix(model_info(server_pb2.ModelInfo(name="m", tasks=tasks)))
    shares = [(share.name, share.weight) for share in mix]
    assert shares == [("retrieval:query", 0.5), ("retrieval:document", 0.5), ("clustering", 1.0), ("none", 1.0)]


async def test_calls_are_made_at_their_times_and_none_after_the_end() -> None:
    started, calls = time.perf_counter(), []
    times = [0.01, 0.012, 0.05]
    await call_at(times, lambda at: calls.append((at, time.perf_counter() - started)), started=started)
    assert [at for at, _ in calls] == times
    assert all(called >= at for at, called in calls)
    endless = asyncio.ensure_future(call_at([1000.0], calls.append, started=started))
    await asyncio.sleep(0)
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)
    assert len(calls) == 3 and "arrivals" not in [thread.name for thread in threading.enumerate()]
