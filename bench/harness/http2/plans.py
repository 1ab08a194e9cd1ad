"""What a run is to do, and what comes of it: plain records that travel between the processes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class Closed:
    """``in_flight`` calls at any time, until ``seconds`` are over or every body has been sent.

    Answers are read once in ``gather_s`` so that several share a wake-up, which is most of what a call costs. Latencies
    grow by as much: 0.001 or 0.002 with many calls in flight, for the sake of rates, 0 otherwise. Calls are ended here
    ``late_s`` after the ``timeout_s`` that the server is told, so that answers which are late are seen.
    """

    bodies: Sequence[bytes]
    in_flight: int
    seconds: float
    timeout_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    gather_s: float = 0.0
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Open:
    """Call i is due ``offsets[i]`` seconds after the start, whatever became of the calls before it.

    ``offsets`` never fall. Over ``max_in_flight`` a call waits, and its latency grows. ``gather_s``: as in
    ``Closed``; calls are sent on time all the same.
    """

    bodies: Sequence[bytes]
    offsets: array[float]
    timeout_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    max_in_flight: int = 1 << 30
    gather_s: float = 0.0
    late_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server on this machine, how many connections to it, and the method to call."""

    host: str
    port: int
    connections: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as a header says them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Record:
    """Times on time.monotonic's clock in seconds (NaN: never), a status and the reply's bytes for each call."""

    scheduled: list[float]
    sent: list[float]
    received: list[float]
    status: list[int]
    message_bytes: list[int]
    pushback_ms: dict[int, int]
    started: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def empty(cls, count: int) -> Record:
        """Of ``count`` calls that are not sent yet."""
        never = [float("nan")] * count
        return cls(never[:], never[:], never[:], [-1] * count, [0] * count, {})


def loopback_target(address: str, *, connections: int, path: str) -> Target:
    """``host:port`` of this machine; raises ValueError for any other, and for a count that makes no sense."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]").replace("localhost", "127.0.0.1")
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here or not port.isdigit():
        raise ValueError(f"address {address!r} is not on this machine; load is made over loopback only")
    if not 1 <= connections <= 500:
        raise ValueError(f"{connections} connections; 1 to 500 are possible")
    return Target(host, int(port), connections, path)
