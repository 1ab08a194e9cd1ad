"""What is lost when a server is told to stop under load, and when its engine is killed."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass

import numpy as np
from harness.http2.frames import LOST
from harness.http2.load import UNANSWERED, Load
from harness.http2.plans import Closed
from harness.servers import running
from rich.progress import track

from serving_figures.requests import Texts, bodies

ARGUMENTS = ("--dtype", "bfloat16", "--no-coalesce")
TEXTS_A_REQUEST, IN_FLIGHT, CONNECTIONS = 8, 32, 4
DRAIN_RUN_S, KILL_RUN_S = 3.0, 12.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the kill to the next good answer, the longest of all kills; calls that were never answered."""

    seconds: float
    unanswered: int
    kills: int


def drains(texts: Texts, times: int) -> int:
    """Requests that a server had taken and did not answer, over so many SIGTERMs at moments of chance."""
    chosen, lost = random.Random(11), 0
    for _ in track(range(times), description="drains"):
        with running(*ARGUMENTS) as server, Load(server.address, connections=CONNECTIONS) as load:
            load.prepare(Closed(bodies(texts.short(80_000), TEXTS_A_REQUEST), IN_FLIGHT, DRAIN_RUN_S))
            load.start()
            time.sleep(chosen.uniform(0.5, 1.5))
            server.process.send_signal(signal.SIGTERM)
            found = load.outcome()
            if server.process.wait(60) != 0:
                raise RuntimeError(f"the server ended with {server.process.returncode} when told to stop")
        if not (found.status == 0).any():
            raise RuntimeError("nothing was answered before the server was told to stop")
        lost += int(((found.status == LOST) | (found.status == UNANSWERED)).sum())
    return lost


def recoveries(texts: Texts, times: int) -> Recovery:
    """The engine's process is killed (-9) in the middle of each run."""
    seconds, unanswered = [], 0
    with running(*ARGUMENTS) as server, Load(server.address, connections=CONNECTIONS) as load:
        for _ in track(range(times), description="kills"):
            plan = Closed(bodies(texts.short(200_000), TEXTS_A_REQUEST), IN_FLIGHT, KILL_RUN_S, gather_s=0.02)
            load.prepare(plan)
            load.start()
            time.sleep(1.5)
            engine = server.engine()
            assert engine is not None, "the engine runs"
            killed = time.monotonic()
            engine.kill()
            found = load.outcome()
            sent_later = (found.status == 0) & (found.sent > killed)
            if not sent_later.any():
                raise RuntimeError(f"no answer within {KILL_RUN_S} s after the engine was killed")
            seconds.append(float(np.nanmin(found.received[sent_later]) - killed))
            unanswered += int(((found.status == LOST) | (found.status == UNANSWERED)).sum())
    return Recovery(max(seconds), unanswered, times)
