"""The device thread: wait, plan, pack, run, answer. One engine owns one backbone on one device.

Callers hand in jobs from any thread and get them back, complete, through a callback on the device thread. Every
accepted job is answered: texts end with their bytes in ``job.out`` or an entry in ``job.errors`` (law 7).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np

from embedmux.server.batching.pack import order
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.errors import (
    Cancelled,
    DeadlineExceeded,
    EmbedmuxError,
    EngineFailure,
    Overloaded,
    Unavailable,
)
from embedmux.server.records import EngineJob, Sequence

logger = logging.getLogger(__name__)

Done = Callable[[EngineJob], None]
# Computes sequences, in this order, into one row of bytes (uint8) for each, or the error of that text alone.
Compute = Callable[[list[Sequence]], Collection[np.ndarray | EmbedmuxError]]


class Leases(Protocol):
    """Who knows the slots: a leased adapter stays in its slot until it is released (Runtime, by AdapterRegistry)."""

    def lease(self, model: int, handle: int, count: int) -> int:
        """``count`` leases of a model's adapter: its slot; raises NotFound when it was unloaded."""

    def release(self, model: int, handle: int, count: int) -> None:
        """Gives so many leases back."""


class Engine:
    """Queues texts, batches them over requests and adapters, and runs ``compute`` on a thread of its own."""

    def __init__(self, compute: Compute, leases: Leases, scheduler: Scheduler) -> None:
        self._compute = compute
        self._leases = leases
        self._scheduler = scheduler
        self._wake = threading.Condition()
        self._done: dict[int, tuple[EngineJob, Done]] = {}  # id(job) -> job, callback
        self._closing = False
        self._tokens_per_second = 10_000.0  # a first guess; the device thread keeps it true
        self._thread = threading.Thread(target=self._run, name="embedmux-device", daemon=True)
        self._thread.start()

    def submit(self, job: EngineJob, done: Done) -> None:
        """Queues a job; ``done(job)`` is called once, when every text of it has an answer."""
        now = time.monotonic()
        handles, lengths = job.adapters.tolist(), (job.offsets[1:] - job.offsets[:-1]).tolist()
        slots = self._lease(job.model, handles)
        sequences: list[Sequence] = []
        for index, (handle, num_tokens) in enumerate(zip(handles, lengths, strict=True)):
            slot = slots[handle]
            if isinstance(slot, EmbedmuxError):
                job.errors[index] = slot
            else:
                sequences.append(Sequence(job, index, num_tokens, slot, now, job.deadline))
        job.remaining = len(sequences)
        refused: EmbedmuxError | None = None
        is_answered = not sequences  # once it is queued, the device thread may answer it before this call returns
        with self._wake:
            if self._closing:
                refused = Unavailable("the server is shutting down; send the request to another one")
            elif sequences:
                try:
                    self._scheduler.add(sequences, tokens_per_second=self._tokens_per_second)
                    self._done[id(job)] = (job, done)
                    self._wake.notify()
                except Overloaded as error:
                    refused = error
        if refused is not None:
            self._release(sequences)
            for sequence in sequences:
                job.errors[sequence.index] = refused
            is_answered = True
        if is_answered:
            done(job)

    def cancel(self, job: EngineJob) -> None:
        """Drops a job's texts that are not yet computing; the job is still answered, with Cancelled for these."""
        with self._wake:
            dropped = self._scheduler.cancel(job)
        self._fail(dropped, Cancelled("the request was cancelled before it was computed"))

    def close(self, timeout_s: float | None = None) -> bool:
        """Stops taking jobs, answers all that are queued and ends the thread; False if that took too long."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._scheduler and not self._closing:
                    self._wake.wait()
                if not self._scheduler:
                    return
                plan = self._scheduler.plan(time.monotonic())
            self._fail(plan.expired, DeadlineExceeded("the deadline passed while the text was queued"))
            if plan.batch:
                self._run_batch(order(plan.batch))

    def _run_batch(self, batch: list[Sequence]) -> None:
        """Computes a batch; one that fails is halved until the guilty text is found, the others are answered."""
        started = time.monotonic()
        try:
            rows = self._compute(batch)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d texts failed (%s); halving it", len(batch), error)
                self._run_batch(batch[: len(batch) // 2])
                self._run_batch(batch[len(batch) // 2 :])
                return
            logger.exception("a text of %d tokens failed", batch[0].num_tokens)
            self._fail(batch, EngineFailure(f"the engine failed on this text: {error}"))
            return
        num_tokens = sum(sequence.num_tokens for sequence in batch)
        rate = num_tokens / max(1e-6, time.monotonic() - started)
        self._tokens_per_second += 0.1 * (rate - self._tokens_per_second)
        for sequence, row in zip(batch, rows, strict=True):
            if isinstance(row, EmbedmuxError):
                logger.error("a text of %d tokens failed: %s", sequence.num_tokens, row)
                sequence.job.errors[sequence.index] = row
                continue
            start = sequence.job.row_starts[sequence.index]
            sequence.job.out[start : start + len(row)] = row.data
        self._finish(batch)

    def _fail(self, sequences: list[Sequence], error: EmbedmuxError) -> None:
        for sequence in sequences:
            sequence.job.errors[sequence.index] = error
        self._finish(sequences)

    def _finish(self, sequences: list[Sequence]) -> None:
        """Counts answered texts off their jobs, and answers the jobs that have no other left."""
        self._release(sequences)
        finished: list[tuple[EngineJob, Done]] = []
        with self._wake:  # cancel runs on the caller's thread, so the count is shared
            for sequence in sequences:
                job = sequence.job
                job.remaining -= 1
                if not job.remaining:
                    finished.append(self._done.pop(id(job)))
        for job, done in finished:
            done(job)

    def _lease(self, model: int, handles: list[int]) -> dict[int, int | EmbedmuxError]:
        """A lease for each of the handles, which may be the same: the slot of each, or why it has none."""
        found: dict[int, int | EmbedmuxError] = {}
        for handle, count in Counter(handles).items():
            try:
                found[handle] = self._leases.lease(model, handle, count)
            except EmbedmuxError as error:
                found[handle] = error
        return found

    def _release(self, sequences: list[Sequence]) -> None:
        leases = Counter((each.job.model, each.job.adapters.item(each.index)) for each in sequences)
        for (model, handle), count in leases.items():
            self._leases.release(model, handle, count)
