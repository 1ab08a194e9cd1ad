"""Which texts form the next batch, and which requests are refused. Pure: time is an argument, nothing here waits.

The order: classes by their share, tenants of a class by weighted fair queueing of tokens, texts of a tenant by the
earlier of their deadline and ``patience_s`` after their arrival. What a request has beyond a batch gives way to others
for a while. A batch is of one class and one model, and is filled up to a budget of seconds by the cost model; a text
that does not fit is passed over for shorter ones behind it, but keeps its place.

A request is refused when the queue is full, or when it could not be answered before its deadline.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedmux.server.batching.cost import CostModel
from embedmux.server.batching.lines import Entry, Line, Share
from embedmux.server.errors import DeadlineExceeded, Overloaded
from embedmux.server.records import EngineJob, Priority, Sequence

LOOK_AHEAD = 64  # texts passed over while filling one batch
QUANTUM_TOKENS = 256  # a tenant is served so many before the next one's turn
GIVES_WAY = 4.0  # a text waits so many seconds longer for each second, beyond a batch, of its own request before it
GIVES_WAY_MOST_S = 4.0
OVERHEAD = 0.05  # what a batch may lose to its fixed cost: larger ones gain nothing and are answered later
LEAST_BUDGET_TOKENS = 512
STRETCH = 0.25  # of the budget: so much more is taken to finish a request
LOAD_MEMORY_S = 1.0
MOST_RETRY_S = 10.0
ANY_SIZE = 1 << 62


@dataclass(slots=True)
class Plan:
    """The next batch with the seconds it should take, and texts that could not be answered before their deadline."""

    batch: list[Sequence] = field(default_factory=list)
    expired: list[Sequence] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a tenant meets in its class: the tokens that it may still queue, and when all it queued should be done.

    ``tenant`` None is anybody who waits for nothing.
    """

    tenant: str | None
    priority: Priority
    room_tokens: int
    done_at: float


class Scheduler:
    """A bounded queue of texts. Not thread-safe: the engine calls it under its lock."""

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_batch_texts: int,
        max_queue_tokens: int,
        bulk_share: float = 0.1,
        weights: Mapping[str, float] | None = None,
        patience_s: float = 1.0,
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self.max_queue_tokens = max_queue_tokens
        self.patience_s = patience_s
        self.queued_tokens = 0
        self.busy_until = 0.0  # when the batch that is being computed should be done
        self.costs: defaultdict[int, CostModel] = defaultdict(CostModel)  # by model
        self._weights = dict(weights or {})
        self._shares = {Priority.INTERACTIVE: Share(1.0 - bulk_share), Priority.BULK: Share(bulk_share)}
        self._level = 0.0  # where a class starts that comes back
        self._arrivals = itertools.count()
        self._queued_by_job: dict[int, int] = {}  # id(job) -> texts still queued
        self._mean_length = 16.0
        self._load, self._load_at = 0.0, 0.0  # seconds of work that arrive a second, of late

    def __len__(self) -> int:
        return sum(len(line) for share in self._shares.values() for line in share.lines.values())

    def add(self, sequences: list[Sequence], now: float, *, is_admitted: bool = False) -> float:
        """Queues the texts of one job, all or none, and returns when they should be done.

        Raises Overloaded when the queue is full or the deadline cannot be met, DeadlineExceeded when it has passed;
        neither for a job that ``is_admitted`` already. A tenant's empty queue takes any job, so that one large request
        is not refused forever.
        """
        job = sequences[0].job
        terms, cost = job.terms, self.costs[job.model]
        for sequence in sequences:
            sequence.cost = cost.text(sequence.num_tokens)
        num_tokens = sum(sequence.num_tokens for sequence in sequences)
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

    def pressure(self, now: float) -> list[Pressure]:
        """What every tenant that waits would meet now, and any that does not."""
        found = []
        for priority, share in self._shares.items():
            for line in share.lines.values():
                finish = self._finish(line.model or 0, share, line, line.seconds, line.weight, now)
                found.append(Pressure(line.tenant, priority, self._room(share, line, line.weight), finish))
            finish = self._finish(0, share, None, 0.0, 1.0, now)
            found.append(Pressure(None, priority, self._room(share, None, 1.0), finish))
        return found

    def _admit(self, job: EngineJob, num_tokens: int, finish: float, now: float) -> None:
        terms, share = job.terms, self._shares[job.terms.priority]
        if num_tokens > self._room(share, share.lines.get(terms.tenant), self._weight(terms.tenant)):
            raise Overloaded(
                f"the queue holds {share.num_tokens} {terms.priority.value} tokens, {num_tokens} more would pass the "
                f"limit {self.max_queue_tokens} (max_queue_tokens); try again later",
                retry_after_s=min(MOST_RETRY_S, max(0.02, (finish - now) / 2)),
                reason="queue",
            )
        if terms.deadline is None or not self.costs[job.model].is_known:
            return
        if terms.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the text was queued")
        is_idle = not self.queued_tokens and now >= self.busy_until
        # An idle device tries: a prediction that is too long by mistake would otherwise never be found out.
        if finish > terms.deadline and not is_idle:
            raise Overloaded(
                f"{num_tokens} tokens would be done in {finish - now:.3f} s, their deadline is in "
                f"{terms.deadline - now:.3f} s; send them with a later one, or try again later",
                retry_after_s=min(MOST_RETRY_S, max(0.02, finish - terms.deadline)),
                reason="deadline",
            )

    def _room(self, share: Share, line: Line | None, weight: float) -> int:
        """Tokens that a tenant may still queue in a class: what is free there, or what its weight gives it of all.

        One that waits for nothing may queue a request of any size, unless so many do that twice the limit is reached.
        """
        free = self.max_queue_tokens - share.num_tokens
        if line is None:
            return ANY_SIZE if share.num_tokens <= 2 * self.max_queue_tokens else 0
        return max(free, int(self.max_queue_tokens * weight / share.weight) - line.num_tokens)

    def _set_due(self, sequences: list[Sequence], seconds: float, share: Share, line: Line | None, now: float) -> float:
        """Gives every text its due time; returns when the last one should be done."""
        terms, before = sequences[0].job.terms, 0.0
        batch = self._budget_s(sequences[0].job.model)
        for sequence in sequences:
            due = now + self.patience_s + min(GIVES_WAY * max(0.0, before - batch), GIVES_WAY_MOST_S)
            sequence.due = due if terms.deadline is None else min(due, terms.deadline - seconds + before)
            before += sequence.cost
        latest = max(sequences[0].due, sequences[-1].due)
        own = seconds + (0.0 if line is None else line.seconds_before(latest))
        return self._finish(sequences[0].job.model, share, line, own, self._weight(terms.tenant), now)

    def _finish(self, model: int, share: Share, line: Line | None, own: float, weight: float, now: float) -> float:
        """When a tenant's first ``own`` seconds of work should be done, others being served beside it."""
        others = sum(min(each.seconds, own * each.weight / weight) for each in share.lines.values() if each is not line)
        ahead = own + others
        served = share.served if share.lines else max(share.served, self._level)
        for other in self._shares.values():
            if other is not share and other.lines:
                # So much has the other class had by the time that this one has had its seconds.
                turn = (served + ahead / share.share - other.served) * other.share
                ahead += min(other.seconds, max(0.0, turn))
        a, budget = self.costs[model].coefficients[0], max(self._budget_s(model), 1e-9)
        full = math.floor(ahead / budget)
        start = max(now, self.busy_until) + full * (budget + a)
        if full and ahead <= (full + STRETCH) * budget:  # what is left goes with the batch before it
            return start + ahead - full * budget
        # The last batch takes in what arrives before it starts.
        last = min(budget, ahead - full * budget + (start - now) * min(1.0, self._load_now(now)))
        return start + last + a

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

    def _budget_s(self, model: int) -> float:
        """Seconds of a full batch, less its fixed cost: as long as gains anything, for texts of the usual length.

        In seconds and not in tokens, so that a batch of long bulk texts holds up an interactive one for no longer.
        """
        a, b, c = self.costs[model].coefficients
        each = b + c * self._mean_length
        tokens = a / max(each, 1e-12) * (1.0 / OVERHEAD - 1.0)
        return each * min(self.max_batch_tokens, max(LEAST_BUDGET_TOKENS, tokens))

    def _stretched(self, budget: float, seconds: float, sequence: Sequence) -> float:
        """The budget for a job that the batch has begun with: a little more, if all that is left of the job fits then.

        A few texts left over would wait for a whole batch, whose length depends on who comes meanwhile.
        """
        left = self._queued_by_job[id(sequence.job)] * sequence.cost
        return budget * (1.0 + STRETCH) if seconds + left <= budget * (1.0 + STRETCH) else budget

    def _load_now(self, now: float) -> float:
        return self._load * math.exp(-max(0.0, now - self._load_at) / LOAD_MEMORY_S)

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def _leave(self, sequence: Sequence) -> None:
        self.queued_tokens -= sequence.num_tokens
        key = id(sequence.job)
        self._queued_by_job[key] -= 1
        if not self._queued_by_job[key]:
            del self._queued_by_job[key]
