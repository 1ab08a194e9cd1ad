"""Refusals that cost next to nothing: before a text is read, by what the engine shows on its board."""

from __future__ import annotations

import time

from embedmux.server.batching.outlook import MARGIN
from embedmux.server.bridge.board import Board, Room, tag_of
from embedmux.server.errors import DeadlineExceeded, Overloaded
from embedmux.server.records import Priority, Terms

MOST_RETRY_S, LEAST_RETRY_S = 10.0, 0.02


class Gate:
    """One front's view of the queue: what the board said last, less what this front has sent since."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._version = -1
        self._rooms: dict[tuple[int, Priority], Room] = {}

    def check(self, num_tokens: int, terms: Terms) -> None:
        """Raises Overloaded where so many tokens, about, would be refused by the engine; else counts them as sent."""
        if (version := self._board.version) != self._version:
            self._version, self._rooms = version, self._board.lines()
        own = self._rooms.get((tag_of(terms.tenant), terms.priority))
        room = own or self._rooms.get((tag_of(None), terms.priority))
        if room is None:
            return
        now = time.monotonic()
        wait = max(0.0, room.done_at - now)
        is_large = num_tokens > self._board.large_from
        if num_tokens > (room.large_tokens if is_large else room.tokens):
            raise Overloaded(
                f"the queue is full: about {num_tokens} more {terms.priority.value} tokens would pass the limit "
                "(max_queue_tokens); try again later",
                retry_after_s=min(MOST_RETRY_S, max(LEAST_RETRY_S, wait / 2)),
                reason="queue",
            )
        if terms.deadline is not None and terms.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the texts were read")
        if terms.deadline is not None and wait > 0.0 and now + wait * (1.0 + MARGIN) > terms.deadline:
            raise Overloaded(
                f"what waits already takes {wait:.3f} s, the deadline is in {terms.deadline - now:.3f} s; "
                "send a later one, or try again later",
                retry_after_s=min(MOST_RETRY_S, max(LEAST_RETRY_S, now + wait - terms.deadline)),
                reason="deadline",
            )
        if own is not None and is_large:
            own.large_tokens -= num_tokens
        elif own is not None:
            own.tokens -= num_tokens
