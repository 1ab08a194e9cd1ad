"""What the queue holds for whom, when it should be done, and hence which requests are refused.

Pure: time is an argument, nothing here waits, computes or imports torch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from embedmux.server.batching.cost import CostModel
from embedmux.server.batching.lines import Line, Share
from embedmux.server.errors import DeadlineExceeded, Overloaded
from embedmux.server.records import EngineJob, Priority, Sequence

GIVES_WAY = 4.0  # a text waits so many seconds longer for each second, beyond a batch, of its own request before it
GIVES_WAY_MOST_S = 4.0
OVERHEAD = 0.05  # what a batch may lose to its fixed cost: larger ones gain nothing and are answered later
LEAST_BUDGET_TOKENS = 512
STRETCH = 0.25  # of the budget: so much more is taken to finish a request
LOAD_MEMORY_S = 1.0
MOST_RETRY_S = 10.0
ANY_SIZE = 1 << 62
SHOWN_LINES = 30  # tenants of a class whose pressure is shown; of others the engine itself decides
MANY_LINES = 32
MOST_BATCHES = 10_000
MARGIN = 0.1  # of the predicted time, beside what predictions were wrong by of late, for a deadline to be promised


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a tenant meets in its class: the tokens that it may still queue, and when all it queued should be done.

    ``tenant`` None is anybody who waits for nothing. Requests that take more than a batch have room of their own, so
    that one of them never keeps small ones out.
    """

    tenant: str | None
    priority: Priority
    room_tokens: int
    large_room_tokens: int
    done_at: float


class Outlook:
    """The lines of all classes, and what may be foretold of them."""

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
        self.queued_tokens = self.queued_texts = 0
        self.busy_until = 0.0  # when the batch that is being computed should be done
        self.costs: defaultdict[int, CostModel] = defaultdict(CostModel)  # by model
        self._weights = dict(weights or {})
        self._shares = {Priority.INTERACTIVE: Share(1.0 - bulk_share), Priority.BULK: Share(bulk_share)}
        self._level = 0.0  # where a class starts that comes back
        self._arrivals = itertools.count()
        self._queued_by_job: dict[int, int] = {}  # id(job) -> texts still queued
        self._mean_length = 16.0
        self._load, self._load_at = 0.0, 0.0  # seconds of work that arrive a second, of late

    def pressure(self, now: float) -> list[Pressure]:
        """What every tenant that waits would meet now, and any that does not."""
        found = []
        for priority, share in self._shares.items():
            longest = heapq.nlargest(SHOWN_LINES, share.lines.values(), key=lambda line: line.num_tokens)
            for line in [*longest, None]:
                weight, own, model = (1.0, 0.0, 0) if line is None else (line.weight, line.seconds, line.model or 0)
                small, large = (self._room(share, line, weight, is_large=is_large) for is_large in (False, True))
                done_at = self._finish(model, share, line, own, weight, now)
                found.append(Pressure(line.tenant if line else None, priority, small, large, done_at))
        return found

    def _admit(self, job: EngineJob, num_tokens: int, finish: float, now: float) -> None:
        terms, share = job.terms, self._shares[job.terms.priority]
        is_large = num_tokens > self.max_batch_tokens
        line, weight = share.lines.get(terms.tenant), self._weight(terms.tenant)
        if num_tokens > self._room(share, line, weight, is_large=is_large):
            queued = share.num_tokens(is_large=is_large)
            raise Overloaded(
                f"the queue holds {queued} {terms.priority.value} tokens, {num_tokens} more would pass the limit "
                f"{self.max_queue_tokens} (max_queue_tokens); try again later",
                retry_after_s=min(MOST_RETRY_S, max(0.02, (finish - now) / 2)),
                reason="queue",
            )
        if terms.deadline is None or not self.costs[job.model].is_known:
            return
        if terms.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the text was queued")
        # An idle device tries: a prediction that is too long by mistake would otherwise never be found out.
        is_idle = not self.queued_tokens and now >= self.busy_until
        # Under overload the queue is as long as deadlines allow: without a margin half of it would end behind them.
        latest = finish + (finish - now) * (MARGIN + self.costs[job.model].error)
        if latest > terms.deadline and not is_idle:
            raise Overloaded(
                f"{num_tokens} tokens would be done in {finish - now:.3f} s, their deadline is in "
                f"{terms.deadline - now:.3f} s; send them with a later one, or try again later",
                retry_after_s=min(MOST_RETRY_S, max(0.02, latest - terms.deadline)),
                reason="deadline",
            )

    def _room(self, share: Share, line: Line | None, weight: float, *, is_large: bool) -> int:
        """Tokens that a tenant may still queue in a class: what is free there, or what its weight gives it of all.

        One that waits for nothing may queue a request of any size, unless so many do that twice the limit is reached.
        """
        queued = share.num_tokens(is_large=is_large)
        free = self.max_queue_tokens - queued
        held = 0 if line is None else line.num_large_tokens if is_large else line.num_tokens - line.num_large_tokens
        if line is None or not held:
            return ANY_SIZE if queued <= 2 * self.max_queue_tokens else 0
        return max(free, int(self.max_queue_tokens * weight / share.weight) - held)

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
        if len(share.lines) <= MANY_LINES:
            beside = (each for each in share.lines.values() if each is not line)
            others = sum(min(each.seconds, own * each.weight / weight) for each in beside)
        else:  # nearly the same, and no text of a thousand tenants has to look at all the others
            others = min(share.seconds, own * share.weight / weight)
        ahead = own + others
        served = share.served if share.lines else max(share.served, self._level)
        for other in self._shares.values():
            if other is not share and other.lines:
                # So much has the other class had by the time that this one has had its seconds.
                turn = (served + ahead / share.share - other.served) * other.share
                ahead += min(other.seconds, max(0.0, turn))
        a, budget = self.costs[model].coefficients[0], max(self._budget_s(model), 1e-9)
        full = min(MOST_BATCHES, math.floor(ahead / budget))
        start = max(now, self.busy_until) + full * (budget + a)
        if full and ahead <= (full + STRETCH) * budget:  # what is left goes with the batch before it
            return start + ahead - full * budget
        # The last batch takes in what arrives before it starts.
        last = min(budget, ahead - full * budget + (start - now) * min(1.0, self._load_now(now)))
        return start + last + a

    def _budget_s(self, model: int) -> float:
        """Seconds of a full batch, less its fixed cost: as long as gains anything, for texts of the usual length.

        In seconds and not in tokens, so that a batch of long bulk texts holds up an interactive one for no longer.
        """
        a, b, c = self.costs[model].coefficients
        each = b + c * self._mean_length
        tokens = a / max(each, 1e-12) * (1.0 / OVERHEAD - 1.0)
        return each * min(self.max_batch_tokens, max(LEAST_BUDGET_TOKENS, tokens))

    def _load_now(self, now: float) -> float:
        return self._load * math.exp(-max(0.0, now - self._load_at) / LOAD_MEMORY_S)

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)
