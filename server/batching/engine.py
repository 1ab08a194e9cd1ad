"""The device thread: wait, plan, pack, run, answer. One engine owns one device.

Callers hand in jobs from any thread and get them back, complete, through a callback on the device thread. Every
accepted job is answered: texts end with their bytes in ``job.out`` or an entry in ``job.errors`` (law 7).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np

from embedmux.server.batching.pack import order
from embedmux.server.batching.repeats import Repeats
from embedmux.server.batching.scheduler import Plan, Scheduler
from embedmux.server.batching.stats import Stats
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

Done = Callable[[list[EngineJob]], None]
# Computes sequences, in this order, into one row of bytes (uint8) for each, or the error of that text alone.
Compute = Callable[[list[Sequence]], Collection[np.ndarray | EmbedmuxError]]
WAY_BACK_S = 0.005  # what an answer takes from here to its caller, at least


class Leases(Protocol):
    """Who knows the slots: a leased adapter stays in its slot until it is released (Runtime, by AdapterRegistry)."""

    def lease(self, model: int, handle: int, count: int) -> int:
        """``count`` leases of a model's adapter: its slot; raises NotFound when it was unloaded."""

    def release(self, model: int, handle: int, count: int) -> None:
        """Gives so many leases back."""


class Board(Protocol):
    """Where the fronts read what the engine is doing; see bridge/board.py."""

    def show(self, scheduler: Scheduler, batch_began: float) -> None:
        """The queue as it is, and since when a batch is being computed: 0 for none."""


class Engine:
    """Queues texts, batches them over requests and adapters, and runs ``compute`` on a thread of its own."""

    def __init__(
        self,
        compute: Compute,
        leases: Leases,
        scheduler: Scheduler,
        *,
        repeats: Repeats | None = None,
        board: Board | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.repeats = repeats or Repeats(is_coalescing=False)
        self.stats = Stats()
        self.board = board
        self._compute = compute
        self._leases = leases
        self.lock = threading.Condition()  # of the scheduler, the repeats and the jobs
        self._done: dict[int, tuple[EngineJob, Done]] = {}  # id(job) -> job, callback
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="embedmux-device", daemon=True)
        self._thread.start()

    def submit(self, job: EngineJob, done: Done) -> None:
        """Queues a job; ``done`` is called once with it, and maybe with others, when every text has an answer."""
        now = job.enqueued = time.monotonic()
        handles, lengths = job.adapters.tolist(), (job.offsets[1:] - job.offsets[:-1]).tolist()
        slots = self._lease(job.model, handles)
        keys = self.repeats.keys_of(job) if self.repeats else [b""] * len(handles)
        sequences: list[Sequence] = []
        for index, (handle, num_tokens, key) in enumerate(zip(handles, lengths, keys, strict=True)):
            slot = slots[handle]
            if isinstance(slot, EmbedmuxError):
                job.errors[index] = slot
            else:
                sequences.append(Sequence(job, index, num_tokens, slot, now, key=key))
        job.remaining = len(sequences)
        refused: EmbedmuxError | None = None
        kept: list[Sequence] = []
        with self.lock:
            if self._closing:
                refused = Unavailable("the server is shutting down; send the request to another one")
            elif sequences:
                waiting, kept = self._unrepeated(sequences, now) if self.repeats else (sequences, [])
                try:
                    job.expected = self.scheduler.add(waiting, now) if waiting else now
                    self._done[id(job)] = (job, done)
                    self.lock.notify()
                except (Overloaded, DeadlineExceeded) as error:
                    refused = error
                    reason = error.reason if isinstance(error, Overloaded) else "expired"
                    self.stats.count(job.model, f"refused_{reason}", 1)
                    for sequence in waiting:
                        self.repeats.finished(sequence, None)  # nobody follows yet: the lock was held
                    self.repeats.cancel(job)
        if refused is not None:
            self._release(sequences)
            for sequence in sequences:
                job.errors[sequence.index] = refused
        if refused is not None or not sequences:
            done([job])  # once it is queued, the device thread may answer it before this call returns
        else:
            self._finish(kept)

    def cancel(self, job: EngineJob) -> None:
        """Drops a job's texts that are not yet computing; the job is still answered, with Cancelled for these."""
        with self.lock:
            following = self.repeats.cancel(job)
            dropped = self.scheduler.cancel(job)
            self._requeue_followers(dropped)
            dropped += following
        self.stats.count(job.model, "cancelled", len(dropped))
        self._fail(dropped, Cancelled("the request was cancelled before it was computed"))

    def close(self, timeout_s: float | None = None) -> bool:
        """Stops taking jobs, answers all that are queued and ends the thread; False if that took too long."""
        with self.lock:
            self._closing = True
            self.lock.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.lock:
                if not self.scheduler and self.board is not None:
                    self.board.show(self.scheduler, 0.0)
                while not self.scheduler and not self._closing:
                    self.lock.wait()
                if not self.scheduler:
                    return
                now = time.monotonic()
                plan = self.scheduler.plan(now)
                self.repeats.started(plan.batch)
                self._requeue_followers(plan.expired)
                if self.board is not None:
                    self.board.show(self.scheduler, now)
            if plan.expired:
                self.stats.count(plan.expired[0].job.model, "expired", len(plan.expired))
                self._fail(plan.expired, DeadlineExceeded("the deadline passed while the text was queued"))
            if plan.batch:
                self._run_plan(plan, now)

    def _run_plan(self, plan: Plan, began: float) -> None:
        """Computes a batch, and learns from it what batches cost."""
        batch, model = plan.batch, plan.batch[0].job.model
        lengths = [sequence.num_tokens for sequence in batch]
        for sequence in batch:
            if not sequence.job.began:
                sequence.job.began = began
        if not self._run_batch(order(batch)):
            return
        seconds = time.monotonic() - began
        with self.lock:
            self.scheduler.costs[model].observe(sum(lengths), sum(length * length for length in lengths), seconds)
        waits = [began - sequence.enqueued for sequence in batch]
        fill = sum(lengths) / self.scheduler.max_batch_tokens
        self.stats.batch(model, batch[0].job.terms.priority.value, waits, sum(lengths), fill, seconds)

    def _run_batch(self, batch: list[Sequence]) -> bool:
        """Computes a batch; one that fails is halved until the guilty text is found, the others are answered.

        Returns whether it was computed as a whole.
        """
        try:
            rows = self._compute(batch)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d texts failed (%s); halving it", len(batch), error)
                self.stats.count(batch[0].job.model, "halved", 1)
                if _is_out_of_memory(error):
                    self._take_smaller_batches(batch)
                self._run_batch(batch[: len(batch) // 2])
                self._run_batch(batch[len(batch) // 2 :])
                return False
            logger.exception("a text of %d tokens failed", batch[0].num_tokens)
            self._answer(batch, [EngineFailure(f"the engine failed on this text: {error}")])
            return False
        self._answer(batch, rows)
        return True

    def _answer(self, batch: list[Sequence], rows: Collection[np.ndarray | EmbedmuxError]) -> None:
        """Gives every text its row or its error, and the same to those that wait for the same text."""
        answered: list[Sequence] = []
        now = time.monotonic()
        for sequence, row in zip(batch, rows, strict=True):
            together = [sequence]
            if self.repeats:
                kept = None if isinstance(row, EmbedmuxError) else row.tobytes()
                with self.lock:
                    together += self.repeats.finished(sequence, kept)
            if isinstance(row, EmbedmuxError):
                logger.error("a text of %d tokens failed: %s", sequence.num_tokens, row)
                self.stats.count(sequence.job.model, "failed", len(together))
            for each in together:
                job = each.job
                if isinstance(row, EmbedmuxError):
                    job.errors[each.index] = row
                elif job.terms.deadline is not None and job.terms.deadline < now + WAY_BACK_S:
                    job.errors[each.index] = DeadlineExceeded("the deadline passed while the text was computed")
                    self.stats.count(job.model, "late", 1)
                else:
                    start = job.row_starts[each.index]
                    job.out[start : start + len(row)] = row.data
            answered += together
        self._finish(answered)

    def _fail(self, sequences: list[Sequence], error: EmbedmuxError) -> None:
        for sequence in sequences:
            sequence.job.errors[sequence.index] = error
        self._finish(sequences)

    def _finish(self, sequences: list[Sequence]) -> None:
        """Counts answered texts off their jobs, and answers the jobs that have no other left."""
        self._release(sequences)
        finished: dict[Done, list[EngineJob]] = {}
        with self.lock:  # cancel runs on the caller's thread, so the count is shared
            for sequence in sequences:
                job = sequence.job
                job.remaining -= 1
                if not job.remaining:
                    _, done = self._done.pop(id(job))
                    finished.setdefault(done, []).append(job)
        now = time.monotonic()
        for done, jobs in finished.items():
            for job in jobs:
                if not job.errors:
                    self.stats.answered(job.model, job.expected - job.enqueued, now - job.enqueued)
            done(jobs)

    def _unrepeated(self, sequences: list[Sequence], now: float) -> tuple[list[Sequence], list[Sequence]]:
        """The texts that must be computed, and those whose row was kept and is in place already; others wait."""
        waiting: list[Sequence] = []
        kept: list[Sequence] = []
        terms = sequences[0].job.terms
        due = min(now + self.scheduler.patience_s, terms.deadline or float("inf"))
        for sequence in sequences:
            row = self.repeats.row(sequence.key)
            if row is not None:
                start = sequence.job.row_starts[sequence.index]
                sequence.job.out[start : start + len(row)] = row
                kept.append(sequence)
            elif not self.repeats.follows(sequence, due):
                waiting.append(sequence)
        return waiting, kept

    def _requeue_followers(self, dropped: list[Sequence]) -> None:
        """Queues the texts that waited for ones which nobody will compute; they were admitted when they came."""
        if not self.repeats:
            return
        now = time.monotonic()
        for sequence in [follower for gone in dropped for follower in self.repeats.finished(gone, None)]:
            if not self.repeats.follows(sequence, sequence.enqueued + self.scheduler.patience_s):
                self.scheduler.add([sequence], now, is_admitted=True)

    def _take_smaller_batches(self, batch: list[Sequence]) -> None:
        """What did not fit into memory will not the next time."""
        num_tokens = sum(sequence.num_tokens for sequence in batch)
        with self.lock:
            fits = max(1, min(self.scheduler.max_batch_tokens, num_tokens) // 2)
            self.scheduler.max_batch_tokens = fits
        logger.error("a batch of %d tokens did not fit into memory; batches have at most %d now", num_tokens, fits)

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


def _is_out_of_memory(error: Exception) -> bool:
    """torch raises a class of its own on CUDA, and a plain RuntimeError on the CPU."""
    is_named_so = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named_so or "allocate memory" in str(error)
