"""Early refusals: what the engine shows on its board, as a front reads it."""

import mmap
import time

import numpy as np
import pytest

from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.bridge.board import BOARD_BYTES, Board
from embedmux.server.bridge.gate import Gate
from embedmux.server.errors import Overloaded
from embedmux.server.records import Encoding, EngineJob, OutputSpec, Priority, Sequence, Terms


class Queue:
    """A scheduler and the board that shows it: 1 ms a token."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, BOARD_BYTES)
        self.written, self.read = Board(memory), Board(memory)
        self.scheduler = Scheduler(max_batch_tokens=100, max_batch_texts=8, max_queue_tokens=1000)
        for _ in range(4):
            self.scheduler.costs[0].observe(100, 1000, 0.1)
        self.show()

    def add(self, num_tokens: int, *, tenant: str = "", priority: Priority = Priority.INTERACTIVE) -> None:
        none = np.zeros(1, np.int32)
        offsets = np.array([0, num_tokens], np.int32)
        job = EngineJob(
            1, np.zeros(num_tokens, np.int32), offsets, none, OutputSpec(8, Encoding.FLOAT32),
            Terms(None, tenant, priority), memoryview(b""), none, none,
        )  # fmt: skip
        now = time.monotonic()
        self.scheduler.add([Sequence(job, 0, num_tokens, -1, now)], now)
        self.show()

    def show(self) -> None:
        self.written.show(self.scheduler, 0.0)


def test_an_idle_engine_refuses_nobody() -> None:
    Gate(Queue().read).check(10**6, Terms(time.monotonic() + 0.001))


def test_before_the_engine_shows_anything_all_pass() -> None:
    Gate(Board(mmap.mmap(-1, BOARD_BYTES))).check(10**6, Terms())


def test_a_full_queue_refuses_and_what_was_sent_meanwhile_counts() -> None:
    queue = Queue()
    gate = Gate(queue.read)
    queue.add(700)
    gate.check(200, Terms())
    with pytest.raises(Overloaded, match="about 200 more interactive tokens") as caught:
        gate.check(200, Terms())
    assert caught.value.reason == "queue"
    assert caught.value.retry_after_s == pytest.approx(0.35, abs=0.1)
    gate.check(200, Terms(priority=Priority.BULK))
    gate.check(10**6, Terms(tenant="new"))  # it holds nothing yet
    queue.show()  # the engine has not had it, or has done it
    gate.check(200, Terms())


def test_a_deadline_before_what_waits_is_refused() -> None:
    queue = Queue()
    gate = Gate(queue.read)
    queue.add(700)
    gate.check(10, Terms(time.monotonic() + 1.0))
    with pytest.raises(
        Overloaded, match=r"what waits already takes 0\.[678]\d+ s, the deadline is in 0\.[23]"
    ) as caught:
        gate.check(10, Terms(time.monotonic() + 0.3))
    assert caught.value.reason == "deadline"
    assert 0.2 < caught.value.retry_after_s < 0.5


def test_the_board_says_whether_the_engine_moves() -> None:
    queue = Queue()
    before = time.monotonic()
    queue.written.beat()
    queue.add(30)
    queue.written.show(queue.scheduler, before)
    assert queue.read.queued == (30, 1)
    assert queue.read.moves.began == before
    assert before <= queue.read.moves.heartbeat <= time.monotonic()
