"""What the engine process lets everybody see of itself: one page of shared memory, written by it alone.

Fronts read here how long work would wait, and refuse what cannot be served before they have read a text; the supervisor
reads whether the engine still moves. Readers take no lock: a page that is read while it is written can refuse a request
that would just have been taken, or the other way round, and the engine has the last word.
"""

from __future__ import annotations

import mmap
import time
import zlib
from dataclasses import dataclass

import numpy as np

from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.records import Priority

MAX_LINES = 128
BOARD_BYTES = 8192
# version, heartbeat and beginning of the batch in work (monotonic seconds, 0 for none), queued tokens, texts, lines
HEAD = np.dtype(
    [
        ("version", "u8"), ("heartbeat", "f8"), ("began", "f8"),
        ("tokens", "i8"), ("texts", "i8"), ("lines", "i8"), ("large_from", "i8"),
    ]
)  # fmt: skip
LINE = np.dtype([("tenant", "u4"), ("priority", "u4"), ("room", "i8"), ("large_room", "i8"), ("done_at", "f8")])
PRIORITIES = list(Priority)


@dataclass(frozen=True, slots=True)
class Moves:
    """Whether the engine still moves: when it last said so, and since when it computes one batch (0: it does not)."""

    heartbeat: float
    began: float


@dataclass(slots=True)
class Room:
    """Tokens that a tenant may still queue in requests of a batch at most, in larger ones, and when it is done."""

    tokens: int
    large_tokens: int
    done_at: float


class Board:
    """Both sides of the page; the engine calls ``show`` and ``beat``, all others only read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._head = np.frombuffer(memory, HEAD, 1)
        self._lines = np.frombuffer(memory, LINE, MAX_LINES, HEAD.itemsize)

    def show(self, scheduler: Scheduler, batch_began: float) -> None:
        """The queue as it is, and since when a batch is being computed: 0 for none."""
        lines = scheduler.pressure(time.monotonic())[:MAX_LINES]
        for place, line in enumerate(lines):
            rooms = line.room_tokens, line.large_room_tokens
            self._lines[place] = (tag_of(line.tenant), PRIORITIES.index(line.priority), *rooms, line.done_at)
        head = self._head
        head["lines"], head["tokens"], head["texts"] = len(lines), scheduler.queued_tokens, len(scheduler)
        head["began"], head["large_from"] = batch_began, scheduler.max_batch_tokens
        head["version"] += 1

    def beat(self) -> None:
        """The engine process still runs."""
        self._head["heartbeat"] = time.monotonic()

    @property
    def version(self) -> int:
        """Changes with every ``show``."""
        return int(self._head["version"][0])

    @property
    def queued(self) -> tuple[int, int]:
        """Tokens and texts that wait."""
        return int(self._head["tokens"][0]), int(self._head["texts"][0])

    @property
    def moves(self) -> Moves:
        """See Moves."""
        return Moves(float(self._head["heartbeat"][0]), float(self._head["began"][0]))

    def lines(self) -> dict[tuple[int, Priority], Room]:
        """(tag of the tenant, priority) -> what it may still queue, and when what it queued should be done."""
        found = self._lines[: int(self._head["lines"][0])].tolist()
        return {(tag, PRIORITIES[priority]): Room(*rooms) for tag, priority, *rooms in found}

    @property
    def large_from(self) -> int:
        """Requests with more tokens than this take more than a batch."""
        return int(self._head["large_from"][0])

    def clear(self) -> None:
        """Nothing is known of an engine that is about to start; it has from now on to give a sign of life."""
        self._head["lines"] = self._head["tokens"] = self._head["texts"] = 0
        self._head["began"] = 0.0
        self._head["version"] += 1
        self.beat()


def tag_of(tenant: str | None) -> int:
    """A number for a tenant's name, 0 for any that waits for nothing.

    Of two tenants with one number the later one holds for both, until the engine itself decides.
    """
    return 0 if tenant is None else zlib.crc32(tenant.encode(), 1) or 1
