"""A closed loop of POST requests over HTTP/1.1 to a server of this machine, made by a process of its own.

Run as a module it is that process: a pickled ``Plan`` comes in through standard input, a pickled ``Posts`` goes out.
"""

from __future__ import annotations

import os
import pickle
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.http2.plans import Target, loopback_target

BENCH = Path(__file__).parents[1]
READ_BYTES = 1 << 18
WAIT_S = 30.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plan:
    """One request in flight on each connection, each body once, until ``seconds`` are over."""

    target: Target
    bodies: Sequence[bytes]
    seconds: float


@dataclass(slots=True)
class Posts:
    """Seconds of each answered request in the order of the answers, their HTTP statuses, and what the run took."""

    latencies: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests answered with 200 a second."""
        return self.statuses.count(200) / self.wall_seconds


def post(address: str, path: str, bodies: Sequence[bytes], *, connections: int, seconds: float) -> Posts:
    """Posts JSON bodies; the process and its connections are made before the clock starts.

    Raises ValueError for an address of another machine, RuntimeError if the server breaks a connection, does not answer
    within 30 s or answers in chunks.
    """
    plan = Plan(loopback_target(address, connections=connections, path=path), bodies, seconds)
    found = subprocess.run(
        [sys.executable, "-m", "harness.http_load"], input=pickle.dumps(plan), stdout=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONPATH": str(BENCH)},
    )  # fmt: skip
    if found.returncode:
        raise RuntimeError(f"the HTTP load generator ended with {found.returncode}; standard error tells more")
    posts: Posts = pickle.loads(found.stdout)
    return posts


class Caller:
    """A connection that is kept alive, and the request that is out on it."""

    def __init__(self, target: Target) -> None:
        self._head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.authority}\r\nContent-Type: application/json\r\n"
            "Content-Length: "
        ).encode()
        self._socket = socket.create_connection((target.host, target.port), WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = b""
        self._wanted = 0
        self.file = self._socket.fileno()
        self.sent = 0.0
        self.status = 0

    def post(self, body: bytes) -> None:
        """Sends one request; small ones, which the kernel takes at once."""
        self._answer, self._wanted, self.status = b"", 0, 0
        self.sent = time.monotonic()
        self._socket.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))

    def read(self) -> bool:
        """Reads what is there; returns whether the answer is whole."""
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._answer[:200]!r}")
        self._answer += data
        if not self._wanted and (end := self._answer.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self._answer, 0, end)
            if length is None:
                raise ConnectionError(f"the answer does not say how long it is: {self._answer[:end]!r}")
            self._wanted = end + 4 + int(length[1])
            self.status = int(self._answer[9:12])
        return 0 < self._wanted <= len(self._answer)


def run(plan: Plan) -> Posts:
    """The loop itself; ends when what was out at the end of the time has been answered."""
    callers = {caller.file: caller for caller in (Caller(plan.target) for _ in range(plan.target.connections))}
    bodies, posts = iter(plan.bodies), Posts()
    busy = []
    cpu, started = time.process_time(), time.monotonic()
    for file, body in zip(callers, bodies, strict=False):
        callers[file].post(body)
        busy.append(file)
    while busy:
        readable, _, _ = select.select(busy, [], [], WAIT_S)
        if not readable:
            raise ConnectionError(f"no answer within {WAIT_S:.0f} s")
        for file in readable:
            caller = callers[file]
            if not caller.read():
                continue
            now = time.monotonic()
            posts.latencies.append(now - caller.sent)
            posts.statuses.append(caller.status)
            following = next(bodies, None) if now < started + plan.seconds else None
            if following is None:
                busy.remove(file)
            else:
                caller.post(following)
    posts.wall_seconds, posts.cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    return posts


if __name__ == "__main__":
    # Under the name that the other process knows it by: pickle would call it __main__'s.
    from harness import http_load

    found = http_load.run(pickle.load(sys.stdin.buffer))
    pickle.dump(found, sys.stdout.buffer)
