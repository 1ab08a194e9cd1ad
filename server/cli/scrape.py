"""A server's /metrics as numbers: sums over labels, and quantiles of what came between two scrapes."""

from __future__ import annotations

import http.client
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from embedmux.server.config import host_and_port
from embedmux.server.errors import Unavailable

TIMEOUT_S = 5.0
Labels = frozenset[tuple[str, str]]
Chosen = Callable[[Mapping[str, str]], bool]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one moment (``time.monotonic``), by name and labels."""

    at: float
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """All series of a name together; 0 where there are none."""
        return sum(self.samples.get(name, {}).values())

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """A name's series by some of their labels, the others summed."""
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for key, value in self.samples.get(name, {}).items():
            have = dict(key)
            found[tuple(have.get(label, "") for label in labels)] += value
        return dict(found)

    def since(self, before: Scrape) -> Scrape:
        """What counters and histograms gained, those that were reset since 0; ``at`` is the time between."""
        gained = {
            name: {key: _gain(value, before.samples.get(name, {}).get(key, 0.0)) for key, value in series.items()}
            for name, series in self.samples.items()
        }
        return Scrape(self.at - before.at, gained)

    def quantile(self, name: str, quantile: float, chosen: Chosen = lambda _: True) -> float | None:
        """A histogram's quantile, linear within a bucket, over all chosen series; None where nothing was counted.

        What lies beyond the last bound is told as that bound.
        """
        totals: defaultdict[float, float] = defaultdict(float)
        for key, value in self.samples.get(f"{name}_bucket", {}).items():
            labels = dict(key)
            if chosen(labels):
                totals[float(labels["le"])] += value
        buckets = sorted(totals.items())
        if not buckets or not buckets[-1][1]:
            return None
        wanted, low, below = quantile * buckets[-1][1], 0.0, 0.0
        for bound, count in buckets:
            if count >= wanted and count > below:
                return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low

    def mean(self, name: str) -> float | None:
        """A histogram's mean over all series; None where nothing was counted."""
        count = self.value(f"{name}_count")
        return self.value(f"{name}_sum") / count if count else None


def scrape(address: str) -> Scrape:
    """The metrics at HOST:PORT, or at http://HOST:PORT/metrics. Raises Unavailable."""
    place = address.removeprefix("http://").partition("/")[0]
    host, port = host_and_port(place, "the address of the metrics")
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, OSError) else "what answers there speaks no HTTP/1"
        raise Unavailable(
            f"no metrics at {place} ({reason}); "
            f"start the server with --metrics-address {place}, or name the address that its log shows"
        ) from error
    finally:
        connection.close()
    found = parse(text) if response.status == http.client.OK else Scrape(0.0)
    if "embedmux_build_info" not in found.samples:
        raise Unavailable(
            f"what answers at {place} has no metrics of embedmux (status {response.status}); "
            "name the server's metrics address, not its gRPC one"
        )
    return found


def parse(text: str) -> Scrape:
    """Prometheus' text format as a scrape of now."""
    samples: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError:
        families = []
    for sample in itertools.chain.from_iterable(family.samples for family in families):
        samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return Scrape(time.monotonic(), dict(samples))


def _gain(now: float, before: float) -> float:
    return now - before if now >= before else now
