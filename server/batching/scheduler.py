"""Which texts form the next batch. Pure: time is an argument, nothing here waits, computes or imports torch.

The order: classes by their share, tenants of a class by weighted fair queueing of tokens, texts of a tenant by the
earlier of their deadline and ``patience_s`` after their arrival. What a request has beyond a batch gives way to others
for a while. A batch is of one class and one model, and is filled up to a budget of seconds by the cost model; a text
that does not fit is passed over for shorter ones behind it, but keeps its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from embedmux.server.batching.lines import Entry, Line, Share
from embedmux.server.batching.outlook import LOAD_MEMORY_S, STRETCH, Outlook
from embedmux.server.records import EngineJob, Priority, Sequence

LOOK_AHEAD = 64  # texts passed over while filling one batch
QUANTUM_TOKENS = 256  # a tenant is served so many before the next one's turn


@dataclass(slots=True)
class Plan:
    """The next batch with the seconds it should take, and texts that could not be answered before their deadline."""

    batch: list[Sequence] = field(default_factory=list)
    expired: list[Sequence] = field(default_factory=list)
    seconds: float = 0.0


class Scheduler(Outlook):
    """A bounded queue of texts. Not thread-safe: the engine calls it under its lock."""

    def __len__(self) -> int:
        return self.queued_texts

    def add(self, sequences: list[Sequence], now: float, *, is_admitted: bool = False) -> float:
        """Queues the texts of one job, all or none, and returns when they should be done.

        Raises Overloaded when the queue is full or the deadline cannot be met, DeadlineExceeded when it has passed;
        neither for a job that ``is_admitted`` already. A tenant's empty queue takes any job, so that one large request
        is not refused forever.
        """
        job = sequences[0].job
        terms, cost = job.terms, self.costs[job.model]
        num_tokens = sum(sequence.num_tokens for sequence in sequences)
        is_large = num_tokens > self.max_batch_tokens
        for sequence in sequences:
            sequence.cost = cost.text(sequence.num_tokens)
            sequence.is_large = is_large
        seconds = sum(sequence.cost for sequence in sequences)
        share = self._shares[terms.priority]
        known = share.lines.get(terms.tenant)
        finish = self._set_due(sequences, seconds, share, known, now)
        if not is_admitted:
            self._admit(sequences[0].job, num_tokens, finish, now)
        if not share.lines:
            share.served = max(share.served, self._level)
        line = share.line(terms.tenant, self._weight(terms.tenant))
        for sequence in sequences:
            line.push((sequence.due, next(self._arrivals), sequence))
        self.queued_tokens += num_tokens
        self.queued_texts += len(sequences)
        self._queued_by_job[id(job)] = self._queued_by_job.get(id(job), 0) + len(sequences)
        self._load = self._load_now(now) + seconds / LOAD_MEMORY_S
        self._load_at = now
        return finish

    def cancel(self, job: EngineJob) -> list[Sequence]:
        """Takes a job's texts out of the queue and returns them; those already in a batch are not affected."""
        if id(job) not in self._queued_by_job:
            return []
        share = self._shares[job.terms.priority]
        line = share.lines[job.terms.tenant]
        dropped = line.drop(job, job.model)
        for sequence in dropped:
            self._leave(sequence)
        share.settle(line)
        return dropped

    def plan(self, now: float) -> Plan:
        """The next batch at ``now`` (monotonic seconds); both lists are empty when nothing is queued."""
        plan = Plan()
        while not plan.batch and (share := self._next_share()) is not None:
            self._level = max(self._level, share.served)
            self._fill(plan, share, now)
        self.busy_until = now + plan.seconds
        return plan

    def _next_share(self) -> Share | None:
        waiting = [share for share in self._shares.values() if share.lines]
        return min(waiting, key=lambda share: share.served, default=None)  # of equals the first: interactive

    def _fill(self, plan: Plan, share: Share, now: float) -> None:
        order = share.in_order()
        model = order[0].model
        assert model is not None, "a line without texts is not in order"
        cost, budget = self.costs[model], self._budget_s(model)
        fixed = cost.coefficients[0]
        passed_over: list[tuple[Line, Entry]] = []
        seconds, num_tokens, is_full = 0.0, 0, False
        touched: list[Line] = []
        jobs: set[EngineJob] = set()  # those with texts in the batch
        while order and not is_full:
            line = order.pop(0)
            if not line.holds(model):
                continue
            touched.append(line)
            ends = line.served + QUANTUM_TOKENS / line.weight if order else math.inf
            while line.holds(model) and line.served <= ends:
                entry = line.pop(model)
                sequence = entry[2]
                deadline = sequence.job.terms.deadline
                most = self._stretched(budget, seconds, sequence) if sequence.job in jobs else budget
                if deadline is not None and deadline <= now + fixed + sequence.cost:
                    plan.expired.append(sequence)
                    self._leave(sequence)
                elif plan.batch and (
                    seconds + sequence.cost > most or num_tokens + sequence.num_tokens > self.max_batch_tokens
                ):
                    passed_over.append((line, entry))
                    is_full = len(passed_over) >= LOOK_AHEAD
                else:
                    plan.batch.append(sequence)
                    jobs.add(sequence.job)
                    seconds += sequence.cost
                    num_tokens += sequence.num_tokens
                    line.served += sequence.num_tokens / line.weight
                    self._leave(sequence)
                    is_full = len(plan.batch) >= self.max_batch_texts or num_tokens >= self.max_batch_tokens
                if is_full:
                    break
            if line.holds(model) and not is_full:
                order.append(line)
                order.sort(key=lambda each: each.served)
        for line, entry in passed_over:
            line.push(entry)
        for line in touched:
            share.settle(line)
        if plan.batch:
            plan.seconds = seconds + fixed
            share.served += plan.seconds / share.share
            if share is self._shares[Priority.INTERACTIVE]:
                self._mean_length += 0.1 * (num_tokens / len(plan.batch) - self._mean_length)

    def _stretched(self, budget: float, seconds: float, sequence: Sequence) -> float:
        """The budget for a job that the batch has begun with: a little more, if all that is left of the job fits then.

        A few texts left over would wait for a whole batch, whose length depends on who comes meanwhile.
        """
        left = self._queued_by_job[id(sequence.job)] * sequence.cost
        return budget * (1.0 + STRETCH) if seconds + left <= budget * (1.0 + STRETCH) else budget

    def _leave(self, sequence: Sequence) -> None:
        self.queued_tokens -= sequence.num_tokens
        self.queued_texts -= 1
        key = id(sequence.job)
        self._queued_by_job[key] -= 1
        if not self._queued_by_job[key]:
            del self._queued_by_job[key]
