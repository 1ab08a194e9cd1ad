"""First fit with coalescing: ranges never overlap, and everything freed is one range again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedmux.server.free_list import FreeList


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 700), st.integers(0, 50)), max_size=60))
def test_ranges_never_overlap_and_all_comes_back(steps: list[tuple[bool, int, int]]) -> None:
    free_list = FreeList(4096, alignment=64)
    taken: dict[int, int] = {}
    for is_allocation, length, choice in steps:
        if is_allocation:
            start = free_list.allocate(length)
            if start is None:
                continue
            assert start % 64 == 0 and start + length <= 4096
            assert all(start + length <= other or other + size <= start for other, size in taken.items())
            taken[start] = length
        elif taken:
            start = sorted(taken)[choice % len(taken)]
            del taken[start]
            free_list.free(start)
    for start in taken:
        free_list.free(start)
    assert free_list.used == 0
    assert free_list.allocate(4096) == 0


def test_freeing_what_was_never_taken_is_a_bug() -> None:
    with pytest.raises(KeyError):
        FreeList(128).free(64)
