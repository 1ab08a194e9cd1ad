"""``embedmux top``: what counters gained between two scrapes, and the view of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from embedmux.server.batching.stats import Stats
from embedmux.server.cli import top
from embedmux.server.cli.scrape import Scrape, parse
from embedmux.server.errors import Overloaded, Unavailable
from embedmux.server.facts import ServerState
from embedmux.server.metrics import http
from embedmux.server.metrics.counters import FrontCounters
from embedmux.server.metrics.http import MetricsServer
from embedmux.server.metrics.ports import Sources
from embedmux.server.records import Terms
from embedmux.server.requests import RerankResult


class Working:
    """Sources that do the same work at every scrape."""

    def __init__(self) -> None:
        self.counters, self.stats = FrontCounters(), Stats()

    def work(self) -> dict[str, Any]:
        model = self.counters.of_model("mini")
        for tenant in ("ann", "bob"):
            self.counters.started("Embedder/Embed")
            model.answered(Terms(tenant=tenant), RerankResult([], [], [50, 50], [50, 90], {}), adapters=("law", "law"))
            self.counters.finished("Embedder/Embed", "OK", 0.015)
        model.refused(Terms(tenant="bob"), Overloaded("no", reason="deadline").reason)
        self.stats.batch(0, "interactive", [0.003] * 4, 200, 0.25, 0.03)
        self.stats.count(0, "late", 1)
        return self.counters.as_dict()

    def snapshot(self) -> dict[str, Any]:
        residency = {"ready": 2, "draining": 0, "used_bytes": 1000, "max_bytes": 4000}
        cost = {"batch": 0.002, "token": 3e-5, "square": 0.0, "error": 0.07}
        return {
            "stats": self.stats.as_dict(),
            "models": [{"name": "mini", "cost": cost, "adapters": residency}],
            "queue": {"tokens": 1234, "texts": 12, "max": 5000},
        }


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that works; one look at it takes a quarter of a second."""
    monkeypatch.setattr(top, "ONCE_S", 0.25)
    monkeypatch.setattr(http, "LOOK_S", 0.02)
    working = Working()
    sources = Sources("1.2.3", lambda: ServerState.SERVING, lambda: 3, working.work, working.snapshot)
    server = MetricsServer("127.0.0.1:0", sources)
    yield f"127.0.0.1:{server.port}"
    server.close()


def test_one_view_has_all_there_is(run, address: str) -> None:
    done = run("top", address, "--once")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"embedmux 1.2.3 at {address} · serving · engine restarts 3 · last 0.")
    words = [line.split() for line in lines]
    assert ["queued", "tokens", "1,234"] in [row[:3] for row in words]
    for part in ("15.0 ms", "3.5 ms", "35.0 ms", "25% full", "2.00 ms + 30.0 µs a token", "7%", "1.0 kB of 4.0 kB"):
        assert part in done.out, part
    assert "refused: deadline" in done.out and "texts late" in done.out
    (texts,) = [row for row in words if row[:2] == ["mini", "law"]]
    ratios = [float(value.replace(",", "")) / float(texts[2]) for value in texts[2:]]
    assert ratios == pytest.approx([1.0, 50.0, 0.5], rel=0.1)
    assert {row[0] for row in words if row} >= {"ann", "bob"}


def test_http_may_stand_before_the_address(run, address: str) -> None:
    assert run("top", f"http://{address}/metrics", "--once").code == 0


def test_a_live_view_goes_on_while_the_server_is_away_and_ends_with_an_interrupt(run, address, monkeypatch) -> None:
    shown, scrape, calls = [], top.scrape, iter(range(9))

    def flaky(address: str) -> Scrape:
        number = next(calls)
        if number == 2:
            raise Unavailable("it is away")
        if number == 4:
            raise KeyboardInterrupt
        return scrape(address)

    kept = top.Live.update
    monkeypatch.setattr(top.Live, "update", lambda live, view, **more: (shown.append(view), kept(live, view, **more)))
    monkeypatch.setattr(top, "scrape", flaky)
    monkeypatch.setattr(top, "REFRESH_S", 0.0)
    assert run("top", address).code == 0
    assert ["it is away" in str(view.renderables[0]) for view in shown] == [False, True, False]


def test_an_address_where_nothing_answers_says_what_to_do(run) -> None:
    failed = run("top", "127.0.0.1:1", "--once")
    assert failed.code == 1
    assert failed.err.startswith("error: no metrics at 127.0.0.1:1 (") and failed.err.count("\n") == 1
    assert "start the server with --metrics-address 127.0.0.1:1" in failed.err
    assert "it takes HOST:PORT" in run("top", "somewhere", "--once").err


def test_the_grpc_address_is_told_apart(run, fake) -> None:
    failed = run("top", fake.address, "--once")
    assert failed.code == 1 and "speaks no HTTP/1" in failed.err


def histogram(*counts: int) -> str:
    bounds = ("0.1", "0.2", "0.4", "+Inf")
    return "".join(f'h_bucket{{le="{le}"}} {count}\n' for le, count in zip(bounds, counts, strict=True))


def test_quantiles_are_those_of_what_came_in_between() -> None:
    before, now = parse(histogram(100, 100, 100, 100)), parse(histogram(100, 110, 110, 110))
    gained = now.since(before)
    assert gained.quantile("h", 0.5) == pytest.approx(0.15)
    assert gained.quantile("h", 1.0) == pytest.approx(0.2)
    assert parse(histogram(0, 0, 0, 5)).quantile("h", 0.5) == 0.4  # all that is known: it was longer
    assert now.since(now).quantile("h", 0.5) is None
    assert now.quantile("other", 0.5) is None


def test_a_counter_that_fell_was_reset_and_a_new_one_began_at_nothing() -> None:
    before, now = parse('c{a="x"} 50\n'), parse('c{a="x"} 7\nc{a="y"} 2\n')
    assert now.since(before).by("c", "a") == {("x",): 7, ("y",): 2}


def test_what_is_no_metrics_is_nothing() -> None:
    assert parse("<html>{{{").samples == {}
