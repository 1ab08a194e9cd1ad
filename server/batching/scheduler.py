"""Which texts form the next batch. Pure: time is an argument, nothing here waits, computes or imports torch.

Texts are served in the order of their due time, the earlier of their deadline and ``patience_s`` after their arrival:
a near deadline jumps ahead, and no text waits forever behind others' deadlines. A batch is of one model, that of the
text that is due first, and is filled up to a token budget; a text that does not fit is passed over for shorter ones
behind it, but keeps its place at the front of the queue.
"""

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from embedmux.server.errors import Overloaded
from embedmux.server.records import EngineJob, Sequence

Entry = tuple[float, int, Sequence]  # due time, arrival, text
LOOK_AHEAD = 64  # texts passed over while filling one batch


@dataclass(frozen=True, slots=True)
class Plan:
    """The next batch, and the texts whose deadline passed while they waited."""

    batch: list[Sequence]
    expired: list[Sequence]


class Scheduler:
    """A bounded queue of texts, by due time. Not thread-safe: the engine calls it under its lock."""

    def __init__(
        self, *, max_batch_tokens: int, max_batch_texts: int, max_queue_tokens: int, patience_s: float = 1.0
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self.max_queue_tokens = max_queue_tokens
        self.patience_s = patience_s
        self.queued_tokens = 0
        self._heaps: dict[int, list[Entry]] = {}  # by model
        self._arrivals = itertools.count()
        self._queued_by_job: dict[int, int] = {}  # id(job) -> texts still queued

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def add(self, sequences: Iterable[Sequence], *, tokens_per_second: float) -> None:
        """Queues the texts of one job, all or none; raises Overloaded with the time the queue needs to drain.

        An empty queue takes any job, so that one large request is not refused forever.
        """
        sequences = list(sequences)
        num_tokens = sum(sequence.num_tokens for sequence in sequences)
        if self.queued_tokens and self.queued_tokens + num_tokens > self.max_queue_tokens:
            raise Overloaded(
                f"the queue holds {self.queued_tokens} tokens, {num_tokens} more would pass the limit "
                f"{self.max_queue_tokens} (max_queue_tokens); try again later",
                retry_after_s=min(10.0, max(0.02, self.queued_tokens / tokens_per_second)),
            )
        for sequence in sequences:
            heap = self._heaps.setdefault(sequence.job.model, [])
            heapq.heappush(heap, (self._due(sequence), next(self._arrivals), sequence))
        self.queued_tokens += num_tokens
        if sequences:
            self._queued_by_job[id(sequences[0].job)] = len(sequences)

    def cancel(self, job: EngineJob) -> list[Sequence]:
        """Takes a job's texts out of the queue and returns them; those already in a batch are not affected."""
        if id(job) not in self._queued_by_job:
            return []
        heap = self._heaps[job.model]
        dropped = [entry[2] for entry in heap if entry[2].job is job]
        heap[:] = [entry for entry in heap if entry[2].job is not job]
        heapq.heapify(heap)
        for sequence in dropped:
            self._leave(sequence)
        return dropped

    def plan(self, now: float) -> Plan:
        """The next batch at ``now`` (monotonic seconds); both lists are empty when nothing is queued."""
        batch: list[Sequence] = []
        expired: list[Sequence] = []
        passed_over: list[Entry] = []
        num_tokens = 0
        # Arrival numbers are unique, so entries never compare their sequences.
        heap = min((heap for heap in self._heaps.values() if heap), key=lambda heap: heap[0][:2], default=[])
        while heap and len(batch) < self.max_batch_texts and len(passed_over) < LOOK_AHEAD:
            entry = heapq.heappop(heap)
            sequence = entry[2]
            if sequence.deadline is not None and sequence.deadline <= now:
                expired.append(sequence)
                self._leave(sequence)
            elif batch and num_tokens + sequence.num_tokens > self.max_batch_tokens:
                passed_over.append(entry)
            else:
                batch.append(sequence)
                num_tokens += sequence.num_tokens
                self._leave(sequence)
            if num_tokens >= self.max_batch_tokens:
                break
        for entry in passed_over:
            heapq.heappush(heap, entry)
        return Plan(batch, expired)

    def _due(self, sequence: Sequence) -> float:
        patient_until = sequence.enqueued + self.patience_s
        return patient_until if sequence.deadline is None else min(sequence.deadline, patient_until)

    def _leave(self, sequence: Sequence) -> None:
        self.queued_tokens -= sequence.num_tokens
        key = id(sequence.job)
        self._queued_by_job[key] -= 1
        if not self._queued_by_job[key]:
            del self._queued_by_job[key]
