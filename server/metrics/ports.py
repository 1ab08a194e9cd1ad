"""What conductors report, and what the metrics are read from; no third-party imports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from embedmux.server.facts import ServerState
from embedmux.server.records import Terms
from embedmux.server.requests import EmbedResult, RerankResult


class TextObserver(Protocol):
    """Told of every request to one model, once; metrics hang here."""

    def answered(
        self,
        terms: Terms,
        result: EmbedResult | RerankResult,
        *,
        adapters: Sequence[str] = (),
        reading_s: float | None = None,
    ) -> None:
        """The request has its result. ``adapters`` has an id for each text, "" for none; empty for no adapter at all.

        ``reading_s`` is how long the texts took to become tokens, None where nobody looked.
        """
        ...

    def refused(self, terms: Terms, reason: str) -> None:
        """The request was refused whole; ``reason`` is that of Overloaded."""
        ...


class UnobservedTexts:
    """A TextObserver that keeps nothing."""

    def answered(
        self,
        terms: Terms,
        result: EmbedResult | RerankResult,
        *,
        adapters: Sequence[str] = (),
        reading_s: float | None = None,
    ) -> None:
        """Keeps nothing."""

    def refused(self, terms: Terms, reason: str) -> None:
        """Keeps nothing."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the metrics come from; each is called at every scrape, on a thread of the metrics server.

    ``counters`` is FrontCounters.as_dict, or ``merged`` of several; ``snapshot`` is Runtime.snapshot, empty before the
    engine has said it.
    """

    version: str
    state: Callable[[], ServerState]
    num_restarts: Callable[[], int]
    counters: Callable[[], dict[str, Any]]
    snapshot: Callable[[], dict[str, Any]]
