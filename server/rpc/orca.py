"""Load reports in trailers, by which clients balance: ORCA's per-query reports (gRFC A51).

A report is an xds.data.orca.v3.OrcaLoadReport in the trailing metadata ``endpoint-load-metrics-bin``. It is encoded by
hand, so that no message of that name stands in the descriptor pool, where a client's own would clash with it.
"""

import struct
import time
from collections.abc import Callable, Mapping

import grpc

from embedmux.server.facts import Load
from embedmux.server.rpc.calls import LOAD_FORMAT, OK, Call

REPORT = "endpoint-load-metrics-bin"
FORMATS = ("text", "json", "bin")  # a call that names one of these asks; it is answered in the binary form
WINDOW_S = 1.0
# Fields of OrcaLoadReport that are sent.
REQUEST_COST, RPS_FRACTIONAL, EPS, NAMED_METRICS, APPLICATION_UTILIZATION = 4, 6, 7, 8, 9
DOUBLE, BYTES = 1, 2  # protobuf's wire types
VALUE = struct.Struct("<d")


class LoadReports:
    """A Watcher that counts calls, and the trailer of each.

    ``load`` says what the engine has to do. ``sends_always``: every call gets a report, otherwise those that ask.

    ``application_utilization`` is the share of the last second in which the engine computed, plus ``queue_seconds``:
    1 is an engine that is always busy and lets nobody wait, 1.5 one behind which half a second of work waits.
    ``rps_fractional`` and ``eps`` are the calls and the failed calls a second of this front process.
    """

    def __init__(
        self, load: Callable[[], Load], *, sends_always: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._sends_always = sends_always
        self._since = clock()
        self._clock = clock
        self._calls = self._errors = 0
        self._rates = (0.0, 0.0)

    def ended(self, call: Call, status: grpc.StatusCode, now: float) -> None:
        """Counts the call."""
        self._calls += 1
        self._errors += status is not OK
        if now - self._since >= WINDOW_S:
            self._roll(now)

    def trailer(self, call: Call) -> tuple[tuple[str, bytes], ...]:
        """What stands in the call's trailing metadata."""
        if not self._sends_always and call.given.get(LOAD_FORMAT, "").lower() not in FORMATS:
            return ()
        if (now := self._clock()) - self._since >= WINDOW_S:
            self._roll(now)
        load, (calls, errors) = self._load(), self._rates
        return ((REPORT, encode(load, calls=calls, errors=errors, num_tokens=call.notes.num_tokens)),)

    def _roll(self, now: float) -> None:
        """Begins another window; rates are those of the one that ended."""
        seconds = now - self._since
        self._rates = (self._calls / seconds, self._errors / seconds)
        self._calls = self._errors = 0
        self._since = now


def encode(load: Load, *, calls: float, errors: float, num_tokens: int) -> bytes:
    """An OrcaLoadReport; ``calls`` and ``errors`` a second."""
    named = {
        "queue_seconds": load.queue_seconds,
        "queued_tokens": float(load.queued_tokens),
        "adapters_resident": float(load.num_adapters),
    }
    return b"".join(
        (
            _map(REQUEST_COST, {"tokens": float(num_tokens)}),
            _double(RPS_FRACTIONAL, calls),
            _double(EPS, errors),
            _map(NAMED_METRICS, named),
            _double(APPLICATION_UTILIZATION, load.busy + load.queue_seconds),
        )
    )


def _double(number: int, value: float) -> bytes:
    return bytes((number << 3 | DOUBLE,)) + VALUE.pack(value)


def _map(number: int, values: Mapping[str, float]) -> bytes:
    """A map is a repeated message of key and value; names here are short, so every length is one byte."""
    found = b""
    for name, value in values.items():
        entry = bytes((1 << 3 | BYTES, len(name))) + name.encode() + _double(2, value)
        found += bytes((number << 3 | BYTES, len(entry))) + entry
    return found
