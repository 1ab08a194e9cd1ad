"""Short interactive texts at 70 % of the peak rate, beside a bulk job of long texts that takes whatever is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from harness.http2.load import Load, arrivals, poisson, run_together
from harness.http2.plans import Closed
from harness.servers import serving

from serving_figures.engine import EngineBeside
from serving_figures.requests import Texts, bodies

ARGUMENTS = ("--dtype", "bfloat16", "--no-coalesce")
PEAK_S, SECONDS, WARM_UP_S = 8.0, 40.0, 3.0
SHARE, IN_FLIGHT, CONNECTIONS = 0.7, 64, 4
BULK_TEXTS, BULK_IN_FLIGHT = 64, 4
MAX_BATCH_TOKENS, SHORT_TOKENS = 2048, 16


@dataclass(frozen=True, slots=True)
class Tail:
    """The tail's seconds, that of one full interactive batch, and what else was done meanwhile."""

    p99_s: float
    p50_s: float
    full_batch_s: float
    peak: float
    bulk_texts_a_second: float


def tail_at_70(texts: Texts) -> Tail:
    """Latency counts from when a call was due, so waiting in the generator counts too."""
    with EngineBeside() as engine:
        full = texts.short(MAX_BATCH_TOKENS // SHORT_TOKENS)
        engine.warm_up(texts.short(2000))
        full_batch_s = engine.full_batch_s(full)
    with (
        serving(*ARGUMENTS) as address,
        Load(address, connections=CONNECTIONS) as load,
        Load(address, connections=1) as bulk,
    ):
        load.closed(bodies(texts.short(20_000), 1), in_flight=IN_FLIGHT, seconds=WARM_UP_S)
        peak = load.closed(bodies(texts.short(80_000), 1), in_flight=IN_FLIGHT, seconds=PEAK_S, gather_s=0.001).rate()
        rate = SHARE * peak
        count = len(arrivals(rate=rate, seconds=SECONDS, seed=7))
        interactive = poisson(bodies(texts.short(count), 1), rate=rate, seconds=SECONDS, seed=7)
        long = bodies(texts.long(int(3000 * SECONDS)), BULK_TEXTS)
        job = Closed(long, BULK_IN_FLIGHT, SECONDS, metadata={"x-embedmux-priority": "bulk"})
        found, done = run_together((load, interactive), (bulk, job))
    settled = found.scheduled - found.started > WARM_UP_S
    latencies = (found.received - found.scheduled)[settled & (found.status == 0)]
    if (found.status[settled] != 0).any():
        raise RuntimeError(f"calls failed at {SHARE:.0%} load: statuses {np.unique(found.status, return_counts=True)}")
    p50, p99 = np.percentile(latencies, (50, 99))
    return Tail(float(p99), float(p50), full_batch_s, peak, BULK_TEXTS * done.rate())
