"""Load on a gRPC server of this machine, made by a process of its own; the records come back as arrays.

with Load(address, connections=4) as load:
    found = load.run(Closed(bodies, in_flight=64, seconds=5.0))
    print(found.rate(), found.latencies())
"""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from harness.http2.frames import OK
from harness.http2.plans import Closed, Open, Record, loopback_target

BENCH = Path(__file__).parents[2]
EMBED = "/embedmux.v1.Embedder/Embed"
UNANSWERED = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run, an entry for each call in the order of the bodies.

    ``scheduled``, ``sent`` and ``received`` are seconds on time.monotonic's clock, float64 [n], NaN: never. ``status``
    int64 [n] holds gRPC's numbers, -1 where no answer came, LOST where the connection ended under the call.
    ``message_bytes`` int64 [n] counts the reply's message without its prefix. ``pushback_ms`` float64 [n] is NaN where
    the server sent none. ``cpu_seconds`` is what the generator used between ``started`` and ``ended``.
    """

    scheduled: np.ndarray
    sent: np.ndarray
    received: np.ndarray
    status: np.ndarray
    message_bytes: np.ndarray
    pushback_ms: np.ndarray
    started: float
    ended: float
    cpu_seconds: float

    @property
    def wall_seconds(self) -> float:
        """From the start to the last answer that was waited for."""
        return self.ended - self.started

    def latencies(self, status: int = OK) -> np.ndarray:
        """Seconds from scheduled to received of the calls with this status."""
        chosen = self.status == status
        seconds: np.ndarray = self.received[chosen] - self.scheduled[chosen]
        return seconds

    def rate(self, *, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """Calls answered OK a second, between two times after the start; the end is the last answer's at the latest."""
        received = np.sort(self.received[self.status == OK] - self.started)
        if received.size == 0:
            return 0.0
        until_s = min(until_s, float(received[-1]))
        count = np.searchsorted(received, until_s, "right") - np.searchsorted(received, since_s, "right")
        return float(count) / (until_s - since_s) if until_s > since_s else 0.0


class Load:
    """A generator's process for one server; use it as a context manager. Connections are made anew for each run.

    Raises ValueError for an address that is not of this machine.
    """

    def __init__(self, address: str, *, connections: int = 1, path: str = EMBED) -> None:
        self._target = loopback_target(address, connections=connections, path=path)
        paths = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.http2.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCH), *([paths] if paths else [])])},
        )  # fmt: skip

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def closed(
        self, bodies: Sequence[bytes], *, in_flight: int, seconds: float, timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None, gather_s: float = 0.0,
    ) -> Outcome:  # fmt: skip
        """Runs ``Closed`` to its end."""
        return self.run(Closed(bodies, in_flight, seconds, timeout_s, metadata or {}, gather_s))

    def poisson(
        self, bodies: Sequence[bytes], *, rate: float, seconds: float, seed: int, first_burst: int = 0,
        timeout_s: float | None = None, metadata: Mapping[str, str] | None = None, max_in_flight: int = 1 << 30,
    gather_s: float = 0.0, late_s: float = 0.0,
    ) -> Outcome:  # fmt: skip
        """Runs ``poisson`` to its end."""
        return self.run(
            poisson(
                bodies, rate=rate, seconds=seconds, seed=seed, first_burst=first_burst, timeout_s=timeout_s,
                metadata=metadata, max_in_flight=max_in_flight, gather_s=gather_s, late_s=late_s,
            )
        )  # fmt: skip

    def run(self, plan: Closed | Open) -> Outcome:
        """Prepares, starts and waits; raises what the generator raised, such as ConnectionRefusedError."""
        self.prepare(plan)
        self.start()
        return self.outcome()

    def prepare(self, plan: Closed | Open) -> None:
        """Hands over the plan and has the connections made, so that the run starts at once."""
        self._tell((self._target, plan))
        self._hear()

    def start(self) -> None:
        """Starts the prepared run and does not wait for it."""
        self._tell(None)

    def outcome(self) -> Outcome:
        """What came of the run, when it has ended."""
        record: Record = self._hear()
        count = sum(1 for each in record.scheduled if each == each)
        pushback = np.full(count, np.nan)
        for call, milliseconds in record.pushback_ms.items():
            pushback[call] = milliseconds
        return Outcome(
            np.array(record.scheduled[:count]), np.array(record.sent[:count]), np.array(record.received[:count]),
            np.array(record.status[:count], np.int64),
            np.maximum(0, np.array(record.message_bytes[:count], np.int64) - 5),
            pushback, record.started, record.ended, record.cpu_seconds,
        )  # fmt: skip

    def _tell(self, message: object) -> None:
        assert self._process.stdin
        pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def _hear(self) -> Any:
        assert self._process.stdout
        try:
            answer = pickle.load(self._process.stdout)
        except EOFError:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def run_together(*pairs: tuple[Load, Closed | Open]) -> list[Outcome]:
    """Runs each plan on its own generator, all of them from the same moment on."""
    for load, plan in pairs:
        load.prepare(plan)
    for load, _ in pairs:
        load.start()
    return [load.outcome() for load, _ in pairs]


def arrivals(*, rate: float, seconds: float, seed: int, first_burst: int = 0) -> array[float]:
    """Seconds after the start of a Poisson process, ``first_burst`` more at 0; their number says how many bodies."""
    chosen = np.random.default_rng(seed)
    gaps = chosen.exponential(1 / rate, size=math.ceil(rate * seconds + 10 * math.sqrt(rate * seconds) + 10))
    times = np.cumsum(gaps)
    return array("d", [0.0] * first_burst + times[times < seconds].tolist())


def poisson(
    bodies: Sequence[bytes], *, rate: float, seconds: float, seed: int, first_burst: int = 0,
    timeout_s: float | None = None, metadata: Mapping[str, str] | None = None, max_in_flight: int = 1 << 30,
    gather_s: float = 0.0, late_s: float = 0.0,
) -> Open:  # fmt: skip
    """Calls at ``rate`` a second on average, each body once; raises ValueError when they do not suffice."""
    offsets = arrivals(rate=rate, seconds=seconds, seed=seed, first_burst=first_burst)
    if len(bodies) < len(offsets):
        raise ValueError(f"{len(offsets)} calls are due and {len(bodies)} bodies are given; see arrivals()")
    return Open(bodies[: len(offsets)], offsets, timeout_s, metadata or {}, max_in_flight, gather_s, late_s)
