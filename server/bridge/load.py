"""How much the engine has to do, as one front sees it: from the board, and from what the engine said last."""

from __future__ import annotations

import time
from typing import Any

from embedmux.server.bridge.linked import Linked
from embedmux.server.facts import Load

IDLE = Load()


def load_of(linked: Linked) -> Load:
    """The load as it is now; zeros while there is no engine."""
    link = linked.link
    if link is None or link.lost.done():
        return IDLE
    done_at = max((room.done_at for room in linked.board.lines().values()), default=0.0)
    return Load(
        busy=_busy(link.before, link.snapshot),
        queue_seconds=max(0.0, done_at - time.monotonic()),
        queued_tokens=linked.board.queued[0],
        num_adapters=sum(map(len, link.adapters)),
    )


def _busy(before: dict[str, Any], now: dict[str, Any]) -> float:
    """The share of time, between two snapshots of one engine process, in which it computed; 0 before there are two."""
    if not before or now["at"] <= before["at"]:
        return 0.0
    seconds = _compute_seconds(now) - _compute_seconds(before)
    passed: float = now["at"] - before["at"]
    return min(1.0, max(0.0, seconds / passed))


def _compute_seconds(snapshot: dict[str, Any]) -> float:
    return sum(float(histogram["sum"]) for _, histogram in snapshot["stats"]["compute_seconds"])
