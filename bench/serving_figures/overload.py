"""Three times the peak rate for a minute, after a burst of ten times what the queue holds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
import psutil
from harness.http2.load import UNANSWERED, Load, arrivals, poisson, run_together
from harness.http2.plans import Closed
from harness.servers import running, serving

from serving_figures.requests import Texts, bodies

MAX_QUEUE_TOKENS = 65_536
ARGUMENTS = ("--dtype", "bfloat16", "--no-coalesce", "--max-queue-tokens", str(MAX_QUEUE_TOKENS))
TEXTS_A_REQUEST, IN_FLIGHT, CONNECTIONS = 32, 24, 8
PEAK_S, SECONDS, WARM_UP_S = 10.0, 60.0, 3.0
TIMES, TIMEOUT_S, LATE_S = 3.0, 5.0, 5.0
TOKENS_A_TEXT = 16
FLOOD_S = 8.0


@dataclass(frozen=True, slots=True)
class Overload:
    """``goodput`` is over the peak less what the generator took of the machine; counts of calls."""

    goodput: float
    late: int
    unanswered: int
    refused: int
    answered: int
    generator_cores: float


def overload(texts: Texts) -> Overload:
    """Late are answers that came behind their deadline, unanswered those that never came."""
    burst = 10 * MAX_QUEUE_TOKENS // (TEXTS_A_REQUEST * TOKENS_A_TEXT)
    with serving(*ARGUMENTS) as address, Load(address, connections=CONNECTIONS) as load:
        load.closed(bodies(texts.short(10_000), TEXTS_A_REQUEST), in_flight=IN_FLIGHT, seconds=WARM_UP_S)
        large = bodies(texts.short(int(12_000 * PEAK_S)), TEXTS_A_REQUEST)
        calm = load.closed(large, in_flight=IN_FLIGHT, seconds=PEAK_S)
        rate = TIMES * calm.rate()
        count = len(arrivals(rate=rate, seconds=SECONDS, seed=3, first_burst=burst))
        once = bodies(texts.short(count * TEXTS_A_REQUEST), TEXTS_A_REQUEST)
        plan = poisson(
            once, rate=rate, seconds=SECONDS, seed=3, first_burst=burst, timeout_s=TIMEOUT_S, late_s=LATE_S,
            gather_s=0.002,
        )  # fmt: skip
        found = load.run(plan)
    is_ok = found.status == 0
    late = int((is_ok & (found.received > found.sent + TIMEOUT_S)).sum())
    good = found.rate(until_s=SECONDS)
    cores = os.cpu_count() or 1
    # The peak was reached with a generator of its own share, so only what it takes beyond that is not the server's.
    more = found.cpu_seconds / found.wall_seconds - calm.cpu_seconds / calm.wall_seconds
    return Overload(
        goodput=good / (calm.rate() * (1.0 - max(0.0, more) / cores)),
        late=late,
        unanswered=int((found.status == UNANSWERED).sum()),
        refused=int((found.status == 8).sum()),
        answered=int(is_ok.sum()),
        generator_cores=found.cpu_seconds / found.wall_seconds,
    )


def refusals_for_half_the_machine(texts: Texts) -> float:
    """Refusals of one text a second that would take half of all cores: from what each takes of the front process.

    One large request keeps the queue full meanwhile.
    """
    with (
        running("--dtype", "bfloat16", "--no-coalesce", "--max-queue-tokens", "64") as server,
        Load(server.address, connections=1) as holding,
        Load(server.address, connections=CONNECTIONS) as load,
    ):
        front = psutil.Process(server.process.pid)
        holder = Closed(bodies(texts.long(40_000), 1000), 2, FLOOD_S)
        flood = Closed(bodies(texts.short(200_000), 1), 64, FLOOD_S - 2.0, gather_s=0.001)
        before, began = front.cpu_times(), time.monotonic()
        _, found = run_together((holding, holder), (load, flood))
        after = front.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    refused = int((found.status == 8).sum())
    if refused < 0.5 * len(found.status):
        counts = np.unique(found.status, return_counts=True)
        raise RuntimeError(f"the queue was not full for {time.monotonic() - began:.0f} s: statuses {counts}")
    return 0.5 * (os.cpu_count() or 1) * refused / seconds
