"""Who is next: shares of the device for classes of work, within a class lines of tenants, within a line due times.

Both levels are start-time fair queueing (Goyal, Vin, Cheng 1996): whoever has been served least, for its weight, is
next, and one that comes back after a pause starts level with those who stayed.
"""

from __future__ import annotations

import heapq

from embedmux.server.records import Sequence

Entry = tuple[float, int, Sequence]  # due time, arrival, text
GRAIN_S = 0.02  # how exactly the work before a due time is known
KEPT_LINES = 256  # of tenants that wait for nothing, so that a pause forgives nothing


class Line:
    """The texts of one tenant in one class, by model and due time. ``served`` is in tokens over its weight."""

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.served = 0.0
        self.num_tokens = 0
        self.num_large_tokens = 0  # of requests that take more than a batch
        self.seconds = 0.0
        self._heaps: dict[int, list[Entry]] = {}
        self._seconds_due: dict[int, float] = {}  # by grain of due time
        self._latest = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    @property
    def model(self) -> int | None:
        """The model of the text that is due first; None for an empty line."""
        heads = [(heap[0][:2], model) for model, heap in self._heaps.items() if heap]
        return min(heads)[1] if heads else None

    def holds(self, model: int) -> bool:
        """Whether a text of that model waits."""
        return bool(self._heaps.get(model))

    def push(self, entry: Entry) -> None:
        """One more text."""
        due, _, sequence = entry
        heapq.heappush(self._heaps.setdefault(sequence.job.model, []), entry)
        grain = int(due / GRAIN_S)
        self._seconds_due[grain] = self._seconds_due.get(grain, 0.0) + sequence.cost
        self._latest = max(self._latest, due)
        self.num_tokens += sequence.num_tokens
        self.num_large_tokens += sequence.num_tokens if sequence.is_large else 0
        self.seconds += sequence.cost

    def pop(self, model: int) -> Entry:
        """The text of that model that is due first."""
        entry = heapq.heappop(self._heaps[model])
        self._left(entry)
        return entry

    def drop(self, job: object, model: int) -> list[Sequence]:
        """Takes all texts of a job out, which are of one model."""
        heap = self._heaps.get(model, [])
        dropped = [entry for entry in heap if entry[2].job is job]
        if dropped:
            heap[:] = [entry for entry in heap if entry[2].job is not job]
            heapq.heapify(heap)
        for entry in dropped:
            self._left(entry)
        return [entry[2] for entry in dropped]

    def seconds_before(self, due: float) -> float:
        """The work of the texts that are due before or with that time."""
        if due >= self._latest:
            return self.seconds
        last = int(due / GRAIN_S)
        return sum(seconds for grain, seconds in self._seconds_due.items() if grain <= last)

    def _left(self, entry: Entry) -> None:
        due, _, sequence = entry
        self.num_tokens -= sequence.num_tokens
        self.num_large_tokens -= sequence.num_tokens if sequence.is_large else 0
        if not self.num_tokens:  # start afresh, without what rounding left
            self.seconds, self._latest = 0.0, 0.0
            self._seconds_due.clear()
            return
        self.seconds -= sequence.cost
        self._seconds_due[int(due / GRAIN_S)] -= sequence.cost


class Share:
    """One class of work: its share of the device, and the lines of its tenants. ``served`` is in seconds over share."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.served = 0.0
        self.lines: dict[str, Line] = {}  # those with texts
        self._idle: dict[str, Line] = {}
        self._level = 0.0  # where a line starts that comes back

    @property
    def seconds(self) -> float:
        """The work of all lines."""
        return sum(line.seconds for line in self.lines.values())

    @property
    def weight(self) -> float:
        """The weights of all lines."""
        return sum(line.weight for line in self.lines.values())

    def num_tokens(self, *, is_large: bool) -> int:
        """Tokens in all lines of requests that take more than a batch, or of those that do not."""
        large = sum(line.num_large_tokens for line in self.lines.values())
        return large if is_large else sum(line.num_tokens for line in self.lines.values()) - large

    def line(self, tenant: str, weight: float) -> Line:
        """The tenant's line; an empty one counts as waiting from now on."""
        if (line := self.lines.get(tenant)) is None:
            line = self.lines[tenant] = self._idle.pop(tenant) if tenant in self._idle else Line(tenant, weight)
            line.served = max(line.served, self._level)
        return line

    def in_order(self) -> list[Line]:
        """The lines, the next one first; one that comes back later starts level with that one."""
        order = sorted(self.lines.values(), key=lambda line: line.served)
        if order:
            self._level = max(self._level, order[0].served)
        return order

    def settle(self, line: Line) -> None:
        """Called when texts left a line: an empty one waits no more."""
        if not line and self.lines.pop(line.tenant, None) is not None:
            self._idle[line.tenant] = line
            while len(self._idle) > KEPT_LINES:
                del self._idle[next(iter(self._idle))]
