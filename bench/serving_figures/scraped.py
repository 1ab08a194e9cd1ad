"""What a server says of itself over /metrics."""

from __future__ import annotations

import math
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Counts = dict[float, float]  # upper bound -> values up to it


def histogram(address: str, name: str) -> Counts:
    """A histogram's cumulative counts, summed over its labels; empty where nothing was counted."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    found: Counts = {}
    for family in families:
        if family.name == name:
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    bound = float(sample.labels["le"])
                    found[bound] = found.get(bound, 0.0) + sample.value
    return found


def since(after: Counts, before: Counts) -> Counts:
    """What was counted in between."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def quantile(counts: Counts, share: float) -> float:
    """The value below which a share of all lies, straight between two bounds; infinite beyond the last."""
    bounds = sorted(counts)
    total = counts[bounds[-1]]
    if not total:
        raise RuntimeError("nothing was counted")
    below, low = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= share * total:
            if math.isinf(bound):
                return math.inf
            return low + (bound - low) * (share * total - below) / max(counts[bound] - below, 1e-12)
        below, low = counts[bound], bound
    return math.inf
