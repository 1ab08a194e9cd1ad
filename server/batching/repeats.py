"""Texts that are computed once: those that are the same as one in flight, and those whose row is still kept.

Exact, since a text's row has the same bits whatever batch it is in (law 1). What is the same: model, adapter, output
and token ids. Not thread-safe: the engine calls it under its lock.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from embedmux.server.records import EngineJob, Priority, Sequence

ENTRY_BYTES = 400  # what an entry takes beside its key's ids and its row


class Repeats:
    """``is_coalescing``: texts in flight are shared; ``cache_bytes``: so much is kept of rows that were computed."""

    def __init__(self, *, is_coalescing: bool = True, cache_bytes: int = 0) -> None:
        self.is_coalescing = is_coalescing
        self.cache_bytes = cache_bytes
        self.used_bytes = 0
        self.num_hits = self.num_misses = self.num_shared = 0
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._leaders: dict[bytes, Sequence] = {}
        self._followers: defaultdict[bytes, list[Sequence]] = defaultdict(list)
        self._computing: set[bytes] = set()

    def __bool__(self) -> bool:
        return self.is_coalescing or self.cache_bytes > 0

    @staticmethod
    def keys_of(job: EngineJob) -> list[bytes]:
        """What the row of each text depends on."""
        every, ends = job.token_ids.tobytes(), (job.offsets * job.token_ids.itemsize).tolist()
        prefix = f"{job.model} {job.output}".encode()
        seconds = job.second.tolist()
        return [
            b"%b %d %d %b" % (prefix, handle, second, every[start:end])
            for handle, second, start, end in zip(job.adapters.tolist(), seconds, ends, ends[1:], strict=False)
        ]

    def row(self, key: bytes) -> bytes | None:
        """The row that is kept, if there is one."""
        if not self.cache_bytes:
            return None
        row = self._rows.get(key)
        if row is None:
            self.num_misses += 1
        else:
            self.num_hits += 1
            self._rows.move_to_end(key)
        return row

    def follows(self, sequence: Sequence, due: float) -> bool:
        """Whether the text waits for one in flight; if not, others may wait for it from now on.

        It does not join one that is later in line than it would be itself.
        """
        if not self.is_coalescing:
            return False
        key = sequence.key
        leader = self._leaders.get(key)
        if leader is None:
            self._leaders[key] = sequence
            return False
        terms, own = leader.job.terms, sequence.job.terms
        is_ahead = terms.tenant == own.tenant and terms.priority in (own.priority, Priority.INTERACTIVE)
        if key not in self._computing and not (is_ahead and leader.due <= due):
            return False
        self._followers[key].append(sequence)
        self.num_shared += 1
        return True

    def started(self, batch: Iterable[Sequence]) -> None:
        """These texts are being computed: whoever asks for the same may wait for them."""
        if self.is_coalescing:
            self._computing.update(each.key for each in batch if self._leaders.get(each.key) is each)

    def finished(self, sequence: Sequence, row: bytes | None) -> list[Sequence]:
        """The texts that waited for this one; its ``row`` is kept, None where it has none."""
        if row is not None and self.cache_bytes:
            self._keep(sequence.key, row)
        if self._leaders.get(sequence.key) is not sequence:
            return []
        del self._leaders[sequence.key]
        self._computing.discard(sequence.key)
        return self._followers.pop(sequence.key, [])

    def cancel(self, job: EngineJob) -> list[Sequence]:
        """Takes out the texts of a job that wait for others'."""
        found: list[Sequence] = []
        for key, followers in list(self._followers.items()):
            gone = [each for each in followers if each.job is job]
            if gone:
                found += gone
                self._followers[key] = [each for each in followers if each.job is not job]
        return found

    def _keep(self, key: bytes, row: bytes) -> None:
        if key in self._rows:
            return
        self.used_bytes += _size(key, row)
        self._rows[key] = row
        while self.used_bytes > self.cache_bytes:
            self.used_bytes -= _size(*self._rows.popitem(last=False))


def _size(key: bytes, row: bytes) -> int:
    return len(key) + len(row) + ENTRY_BYTES
