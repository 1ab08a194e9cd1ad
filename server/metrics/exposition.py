"""Counters of the fronts and the snapshot of the engine -> Prometheus families."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from embedmux.server.facts import ServerState
from embedmux.server.metrics import families
from embedmux.server.metrics.families import Family, Kind
from embedmux.server.metrics.ports import Sources

Row = tuple[Iterable[str], Any]  # the labels' values and a number, or a Histogram.as_dict
Rows = tuple[Family, Iterable[Row]]

Thing = TypeVar("Thing")
AT_ONCE = 50

FRONT = {
    "calls": families.CALL_SECONDS,
    "in_flight": families.CALLS_IN_FLIGHT,
    "requests": families.REQUESTS,
    "refused": families.REFUSED_REQUESTS,
    "errors": families.TEXT_ERRORS,
    "reading": families.TOKENIZE_SECONDS,
}
OF_TEXTS = (families.TEXTS, families.TOKENS, families.TRUNCATED_TEXTS)
COUNTS = {
    "texts": families.ENGINE_TEXTS,
    "tokens": families.ENGINE_TOKENS,
    "batches": families.ENGINE_BATCHES,
    "halved": families.HALVED_BATCHES,
}
REFUSED = "refused_"
# Where a number lies in the snapshot.
PLACES = {
    families.QUEUED_TOKENS: ("queue", "tokens"),
    families.QUEUED_TEXTS: ("queue", "texts"),
    families.QUEUE_LIMIT: ("queue", "max"),
    families.BATCH_LIMIT: ("batch", "max_tokens"),
    families.CACHE_HITS: ("repeats", "hits"),
    families.CACHE_MISSES: ("repeats", "misses"),
    families.COALESCED: ("repeats", "shared"),
    families.CACHE_BYTES: ("repeats", "used_bytes"),
    families.CACHE_LIMIT: ("repeats", "cache_bytes"),
}


class Unhurried(list[Sample]):
    """Samples that whoever writes them down goes through without holding up the event loop."""

    def __iter__(self) -> Iterator[Sample]:
        return unhurried(super().__iter__())


class Exposition(Collector):
    """Reads its sources at every scrape; a source may be empty, then its families have no series."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Every family once."""
        sources = self._sources
        found = (front(sources.counters()), engine(sources.snapshot()), server(sources))
        for family, rows in itertools.chain(*found):
            made = metric(family, unhurried(rows))
            made.samples = Unhurried(made.samples)
            yield made

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is, is only known when it is read."""
        return iter(())


def registry(sources: Sources) -> CollectorRegistry:
    """A registry of the sources and of this process."""
    found = CollectorRegistry(auto_describe=False)
    found.register(Exposition(sources))
    ProcessCollector(registry=found)
    return found


def front(counters: dict[str, Any]) -> Iterator[Rows]:
    """What the fronts counted (FrontCounters.as_dict)."""
    for name, family in FRONT.items():
        yield family, counters.get(name, ())
    texts = counters.get("texts", ())
    for at, family in enumerate(OF_TEXTS):
        yield family, [(labels, values[at]) for labels, values in texts]


def engine(snapshot: dict[str, Any]) -> Iterator[Rows]:
    """What the engine counted (Runtime.snapshot)."""
    stats, models = snapshot.get("stats", {}), snapshot.get("models", [])
    names = [model["name"] for model in models]
    queued = stats.get("queue_seconds", ())
    yield families.QUEUE_SECONDS, [((names[model], priority), each) for model, priority, each in queued]
    for family, name in (
        (families.COMPUTE_SECONDS, "compute_seconds"),
        (families.BATCH_FILL, "batch_fill"),
        (families.PREDICTION_ERROR, "prediction_error"),
    ):
        yield family, [((names[model],), each) for model, each in stats.get(name, ())]
    yield from _counts([(names[model], name, number) for model, name, number in stats.get("counts", ())])
    costs = [(model["name"], model["cost"]) for model in models]
    terms = ("batch", "token", "square")
    yield families.COST, [((name, term), cost[term]) for name, cost in costs for term in terms]
    yield families.COST_ERROR, [((name,), cost["error"]) for name, cost in costs]
    residency = [(model["name"], model["adapters"]) for model in models]
    both = ("ready", "draining")
    yield families.ADAPTERS, [((name, status), found[status]) for name, found in residency for status in both]
    yield families.ADAPTER_BYTES, [((name,), found["used_bytes"]) for name, found in residency]
    yield families.ADAPTER_LIMIT, [((name,), found["max_bytes"]) for name, found in residency]
    for family, (part, name) in PLACES.items():
        yield family, [((), snapshot[part][name])] if part in snapshot else ()


def server(sources: Sources) -> Iterator[Rows]:
    """What the server is and how it fares."""
    state = sources.state()
    yield families.STATE, [((each.value,), float(each is state)) for each in ServerState]
    yield families.RESTARTS, [((), sources.num_restarts())]
    yield families.BUILD, [((sources.version,), 1)]


def unhurried(things: Iterable[Thing]) -> Iterator[Thing]:
    """The things, with the interpreter let go of now and then: a thread that keeps it does so for 5 ms on end."""
    for place, thing in enumerate(things):
        if place % AT_ONCE == 0:
            time.sleep(0)
        yield thing


def metric(family: Family, rows: Iterable[Row]) -> Metric:
    """A family with its series."""
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, found in rows:
            histogram.add_metric(tuple(labels), buckets(found), found["sum"])
        return histogram
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    made = make(family.name, family.help, labels=family.labels)
    for labels, value in rows:
        made.add_metric(tuple(labels), value)
    return made


def buckets(histogram: dict[str, Any]) -> list[tuple[str, float]]:
    """A Histogram.as_dict as upper bounds with the counts of all that is not above them."""
    bounds = [*map(floatToGoString, histogram["bounds"]), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram["counts"]), strict=True))


def _counts(counts: list[tuple[str, str, int]]) -> Iterator[Rows]:
    """The engine's counts by model and what they count: each into its family."""
    for name, family in COUNTS.items():
        yield family, [((model,), number) for model, what, number in counts if what == name]
    others = [each for each in counts if each[1] not in COUNTS]
    refused = [each for each in others if each[1].startswith(REFUSED)]
    yield families.ENGINE_REFUSED, [((model, what.removeprefix(REFUSED)), number) for model, what, number in refused]
    dropped = [each for each in others if not each[1].startswith(REFUSED)]
    yield families.DROPPED_TEXTS, [((model, what), number) for model, what, number in dropped]
