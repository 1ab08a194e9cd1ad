"""Which parts of a flat memory are free."""

from __future__ import annotations


class FreeList:
    """Free regions of [0, size) by start; first fit keeps the used part dense at the front. Sizes are elements."""

    def __init__(self, size: int) -> None:
        self._free = {0: size} if size else {}

    @property
    def total(self) -> int:
        """Free elements, in however many pieces."""
        return sum(self._free.values())

    @property
    def largest(self) -> int:
        """The largest region that can be taken."""
        return max(self._free.values(), default=0)

    def take(self, size: int) -> int | None:
        """The start of the first region that is large enough, None when there is none."""
        start = next((start for start in sorted(self._free) if self._free[start] >= size), None)
        if start is not None:
            rest = self._free.pop(start) - size
            if rest:
                self._free[start + size] = rest
        return start

    def give_back(self, start: int, size: int) -> None:
        """Return a region; it is joined with its free neighbours."""
        before = next((at for at in self._free if at + self._free[at] == start), None)
        if before is not None:
            size += self._free.pop(before)
            start = before
        size += self._free.pop(start + size, 0)
        self._free[start] = size
