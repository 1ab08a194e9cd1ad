"""Counters and a snapshot with something in every table, as a server would have them."""

from collections.abc import Callable
from typing import Any

import pytest

from embedmux.server.batching.stats import Stats
from embedmux.server.errors import NotFound
from embedmux.server.facts import ServerState
from embedmux.server.metrics.counters import FrontCounters
from embedmux.server.metrics.ports import Sources
from embedmux.server.records import Terms
from embedmux.server.requests import RerankResult


@pytest.fixture
def result() -> Callable[..., RerankResult]:
    """A result of texts that have so many tokens, of which at most ``cut`` were read."""

    def make(*lengths: int, cut: int = 512, failed: tuple[int, ...] = ()) -> RerankResult:
        zeros, errors = [0.0] * len(lengths), {at: NotFound("no") for at in failed}
        return RerankResult(zeros, zeros, [min(cut, length) for length in lengths], list(lengths), errors)

    return make


@pytest.fixture
def counters(result: Callable[..., RerankResult]) -> FrontCounters:
    """Two calls to one model, of two tenants; a refusal and a failed text."""
    found = FrontCounters()
    model = found.of_model("mini")
    for method, code, seconds in (("Embedder/Embed", "OK", 0.004), ("Embedder/Embed", "NOT_FOUND", 0.001)):
        found.started(method)
        found.finished(method, code, seconds)
    found.started("Reranker/Rerank")
    model.answered(Terms(tenant="ann"), result(5, 7), adapters=("law", "law"), reading_s=0.002)
    model.answered(Terms(tenant="bob"), result(9, 3, 4, cut=6, failed=(2,)), adapters=("law", "", "law"))
    model.refused(Terms(tenant="bob"), "deadline")
    found.refused("calls")
    return found


@pytest.fixture
def snapshot() -> dict[str, Any]:
    """Runtime.snapshot of an engine with two models, of which one worked."""
    stats = Stats()
    for seconds in (0.003, 0.03, 99.0):
        stats.batch(1, "interactive", [0.001, seconds], 20, 0.5, seconds)
    stats.batch(1, "bulk", [0.7], 10, 1.0, 0.01)
    stats.answered(1, 1.0, 0.8)
    for what, number in (("expired", 3), ("late", 1), ("halved", 1), ("refused_queue", 2)):
        stats.count(1, what, number)
    residency = {"ready": 2, "draining": 1, "used_bytes": 1000, "max_bytes": 4000}
    cost = {"batch": 0.001, "token": 1e-5, "square": 0.0, "error": 0.1}
    return {
        "stats": stats.as_dict(),
        "models": [{"name": name, "cost": cost, "adapters": residency} for name in ("idle", "mini")],
        "queue": {"tokens": 70, "texts": 7, "max": 700},
        "batch": {"max_tokens": 2048},
        "repeats": {"hits": 4, "misses": 5, "shared": 6, "used_bytes": 100, "cache_bytes": 200},
    }


@pytest.fixture
def sources(counters: FrontCounters, snapshot: dict[str, Any]) -> Sources:
    """All of it, of a server that serves and has lost one engine."""
    return Sources("1.2.3", lambda: ServerState.SERVING, lambda: 1, counters.as_dict, lambda: snapshot)
