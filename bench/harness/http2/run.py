"""One plan, run: a loop that sleeps, reads what came, sends what is due."""

import gc
import math
import select
import time
from collections import deque

from harness.http2.connection import Connection
from harness.http2.frames import DEADLINE_EXCEEDED, UNAVAILABLE, request_block
from harness.http2.plans import Closed, Open, Record, Target

# How long calls may stay without an answer after the last was due; a plan's timeout comes on top.
DRAIN_S = 10.0


class Run:
    """One plan on connections of its own, which stand when this is made; raises OSError if they cannot."""

    def __init__(self, target: Target, plan: Closed | Open) -> None:
        self.record = Record.empty(len(plan.bodies))
        self._plan = plan
        self._timeout_s = math.inf if plan.timeout_s is None else plan.timeout_s + plan.late_s
        self._drain_s = DRAIN_S + (plan.timeout_s or 0.0)
        self._max_in_flight = plan.max_in_flight if isinstance(plan, Open) else plan.in_flight
        block = request_block(target.authority, target.path, plan.metadata, plan.timeout_s)
        self._connections = [
            Connection(target, block, self.record, timeout_s=plan.timeout_s) for _ in range(target.connections)
        ]
        self._by_file = {connection.file: connection for connection in self._connections}
        self._touched: set[Connection] = set()  # to be flushed
        self._due: deque[int] = deque()
        self._deadlines: deque[tuple[float, Connection, int]] = deque()
        self._num_planned = self._in_flight = self._turn = 0
        # When the plan has something to say next, infinity if never; when the last call was due; when to read again.
        self._next = self._last_due = self._read_at = 0.0

    def go(self) -> None:
        """Runs the plan to its end; afterwards the record is complete and the connections are closed."""
        gc.disable()
        cpu, now = time.process_time(), time.monotonic()
        self.record.started = now
        self._follow_plan(now)
        self._send(now)
        while self._by_file and (
            self._next < math.inf or ((self._in_flight or self._due) and now < self._last_due + self._drain_s)
        ):
            self._sleep_and_read(now)
            now = time.monotonic()
            if self._deadlines:
                self._expire(now)
            self._follow_plan(now)
            self._send(now)
        self.record.ended = time.monotonic()
        if not self._by_file:
            self._give_up()
        self.record.cpu_seconds = time.process_time() - cpu
        gc.enable()
        for connection in self._connections:
            connection.close()

    def _follow_plan(self, now: float) -> None:
        """Makes calls due, and says when it has to be asked again."""
        plan, record, first = self._plan, self.record, self._num_planned
        last = first
        if isinstance(plan, Open):
            offsets, started = plan.offsets, record.started
            while last < len(offsets) and started + offsets[last] <= now:
                record.scheduled[last] = started + offsets[last]
                last += 1
            self._next = started + offsets[last] if last < len(offsets) else math.inf
        elif now < record.started + plan.seconds and first < len(plan.bodies):
            last = min(first + plan.in_flight - self._in_flight - len(self._due), len(plan.bodies))
            record.scheduled[first:last] = [now] * (last - first)
            self._next = record.started + plan.seconds
        else:
            self._next = math.inf
        if last > first:
            self._due.extend(range(first, last))
            self._num_planned, self._last_due = last, now

    def _send(self, now: float) -> None:
        """Opens what is due over all connections in turn, where there is room, and flushes."""
        due, plan, num_full = self._due, self._plan, 0
        while due and self._in_flight < self._max_in_flight and num_full < len(self._connections):
            self._turn = (self._turn + 1) % len(self._connections)
            connection = self._connections[self._turn]
            if not connection.has_room:
                num_full += 1
                continue
            num_full = 0
            call = due.popleft()
            stream = connection.open(call, plan.bodies[call])
            self.record.sent[call] = now
            self._in_flight += 1
            self._touched.add(connection)
            if self._timeout_s < math.inf:
                self._deadlines.append((now + self._timeout_s, connection, stream))
        for connection in self._touched:
            connection.flush()
        # Those that the kernel did not take all of are tried again at the next turn.
        self._touched = {connection for connection in self._touched if connection.wants_to_write}

    def _sleep_and_read(self, now: float) -> None:
        """Until an answer, the next call or the next deadline; answers only when ``gather_s`` are over."""
        until = min(self._next, now + 1.0, self._deadlines[0][0] if self._deadlines else math.inf)
        if now < self._read_at:
            time.sleep(max(0.0, min(self._read_at, until) - now))
            now = time.monotonic()
            if until <= now < self._read_at:
                return
        blocked = [connection.file for connection in self._touched]
        files, _, _ = select.select(list(self._by_file), blocked, [], max(0.0, until - now))
        if files:
            self._read_at = time.monotonic() + self._plan.gather_s
        for file in files:
            connection = self._by_file[file]
            self._in_flight -= connection.receive()
            if connection.refused:
                self._due.extendleft(reversed(connection.refused))
                connection.refused.clear()
            if not connection.is_open and not connection.calls:
                del self._by_file[file]
            else:
                self._touched.add(connection)

    def _expire(self, now: float) -> None:
        """Ends calls whose deadline is over, as gRPC's clients do without waiting for the server."""
        deadlines = self._deadlines
        while deadlines:
            deadline, connection, stream = deadlines[0]
            if stream in connection.calls:
                if now < deadline:
                    return
                connection.cancel(stream, DEADLINE_EXCEEDED, now)
                self._in_flight -= 1
                self._touched.add(connection)
            deadlines.popleft()

    def _give_up(self) -> None:
        """Nothing is left to send on: what is due and what would become due is UNAVAILABLE, at once."""
        if isinstance(self._plan, Open):
            self._follow_plan(math.inf)
        for call in self._due:
            self.record.status[call] = UNAVAILABLE
