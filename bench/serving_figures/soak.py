"""Minutes of all at once: mixed sizes at 70 % of the peak, cancels, slow readers, adapters that come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from harness.http2.load import Load, arrivals
from harness.servers import Server, running

from embedmux.client.blocking import Client
from embedmux.client.texts import embed_request
from embedmux.server.errors import EmbedmuxError
from serving_figures.requests import Texts, bodies

ARGUMENTS = ("--dtype", "bfloat16")
SIZES = (1, 1, 1, 1, 4, 8, 32)
PEAK_S, SHARE, WARM_UP_SHARE = 6.0, 0.7, 0.25
SLOW_READERS, READ_EVERY_S = 50, 0.5
PERIOD_S = 30.0  # load comes in periods, so that no more than one of bodies is held here
SAMPLES_S = 1.0
EXPECTED = (0, 8)  # answered, refused for overload


@dataclass
class Soak:
    """``drift``: growth of the median resident memory from behind the warm-up to the end; what went wrong, in words."""

    drift: float = 0.0
    errors: list[str] = field(default_factory=list)
    calls: int = 0
    megabytes: float = 0.0


def soak(texts: Texts, seconds: float) -> Soak:
    """Memory is that of all of the server's processes, sampled every second; the first quarter is warm-up."""
    found = Soak()
    with running(*ARGUMENTS) as server, Load(server.address, connections=4) as load:
        peak = load.closed(mixed(texts, 4000), in_flight=24, seconds=PEAK_S).rate()
        stop = threading.Event()
        samples: list[tuple[float, int]] = []
        jobs: list[Callable[[], None]] = [
            lambda: watch(server, samples, stop),
            lambda: cancel(server.address, texts.long(64), stop),
            lambda: reload_adapters(server.address, found, stop),
            *[lambda: read_slowly(server.address, found, stop) for _ in range(SLOW_READERS)],
        ]
        threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        began, period = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            count = len(arrivals(rate=SHARE * peak, seconds=PERIOD_S, seed=period))
            run = load.poisson(
                mixed(texts, count), rate=SHARE * peak, seconds=PERIOD_S, seed=period, timeout_s=30.0, gather_s=0.001
            )
            found.calls += len(run.status)
            for status, number in zip(*np.unique(run.status, return_counts=True), strict=True):
                if status not in EXPECTED:
                    found.errors.append(f"{number} calls ended with status {status}")
            period += 1
        stop.set()
        for thread in threads:
            thread.join(30)
    settled = [size for at, size in samples if at - began > WARM_UP_SHARE * seconds]
    third = len(settled) // 3
    first, last = np.median(settled[:third]), np.median(settled[-third:])
    found.drift, found.megabytes = float(last / first - 1.0), float(last) / 1e6
    return found


def mixed(texts: Texts, count: int) -> list[bytes]:
    """Requests of 1 to 32 texts, one in twenty of long ones."""
    made: list[bytes] = []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        made += bodies(texts.long(size) if number % 20 == 19 and size < 8 else texts.short(size), size)
    return made


def watch(server: Server, samples: list[tuple[float, int]], stop: threading.Event) -> None:
    """Notes the resident memory."""
    while not stop.wait(SAMPLES_S):
        samples.append((time.monotonic(), server.resident_bytes()))


def cancel(address: str, texts: list[str], stop: threading.Event) -> None:
    """Sends requests and gives them up after some milliseconds."""
    request, turn = embed_request(texts, {}), 0
    with Client(address, max_attempts=1) as client:
        while not stop.wait(0.2):
            call = client._stubs.embedder.Embed.future(request, timeout=30)
            time.sleep(0.001 * (turn % 40))
            call.cancel()
            turn += 1


def reload_adapters(address: str, found: Soak, stop: threading.Event) -> None:
    """Loads an adapter again under another name, uses it and unloads it."""
    turn = 0
    with Client(address) as client:
        while not stop.wait(1.0):
            name = f"again-{turn}"
            try:
                client.load_adapter("clustering", id=name)
                client.embed([f"one of {turn}"], adapter=name)
                client.unload_adapter(name)
            except EmbedmuxError as error:
                found.errors.append(f"adapter {name}: {error}")
            turn += 1


def read_slowly(address: str, found: Soak, stop: threading.Event) -> None:
    """A stream that is fed at once and read a reply at a time."""

    def batches() -> list[list[str]]:
        return [[f"stream {time.monotonic()} {at}" for at in range(8)] for _ in range(40)]

    with Client(address) as client:
        while not stop.is_set():
            try:
                for _ in client.embed_stream(batches(), window=16):
                    if stop.wait(READ_EVERY_S):
                        return
            except EmbedmuxError as error:
                found.errors.append(f"stream: {error}")
                stop.wait(1.0)
