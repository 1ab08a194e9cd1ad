"""First-fit allocation in one flat region, with coalescing of freed neighbours."""


class FreeList:
    """Hands out ranges of ``[0, size)`` on ``alignment`` borders; units are whatever the caller counts in.

    Not thread-safe: one owner calls it.
    """

    def __init__(self, size: int, *, alignment: int = 64) -> None:
        self.size = size
        self.alignment = alignment
        self.used = 0
        self._free = [(0, size)]  # (start, length), by start, never touching each other
        self._taken: dict[int, int] = {}

    def allocate(self, length: int) -> int | None:
        """The start of a free range of at least ``length``, or None when no free range is long enough."""
        length = max(self.alignment, -(-length // self.alignment) * self.alignment)
        for position, (start, available) in enumerate(self._free):
            if available < length:
                continue
            if available == length:
                del self._free[position]
            else:
                self._free[position] = (start + length, available - length)
            self._taken[start] = length
            self.used += length
            return start
        return None

    def free(self, start: int) -> None:
        """Gives back the range that ``allocate`` returned; anything else is a bug and raises KeyError."""
        length = self._taken.pop(start)
        self.used -= length
        position = next((i for i, (other, _) in enumerate(self._free) if other > start), len(self._free))
        if position < len(self._free) and start + length == self._free[position][0]:
            length += self._free.pop(position)[1]
        if position > 0 and sum(self._free[position - 1]) == start:
            position -= 1
            start, length = self._free[position][0], self._free[position][1] + length
            del self._free[position]
        self._free.insert(position, (start, length))
