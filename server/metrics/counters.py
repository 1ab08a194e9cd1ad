"""What one front counts of its calls and texts. Plain numbers, since they cross to the front that reports for all.

The event loop writes and takes no lock; a reader on another thread may find a text counted whose tokens are not yet.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from embedmux.server.batching.stats import SECONDS, Histogram
from embedmux.server.records import Terms
from embedmux.server.requests import EmbedResult, RerankResult

MAX_TENANTS, MAX_ADAPTERS = 100, 300  # clients name tenants as they like, and every series costs whoever stores it
MAX_SERIES = 4000  # of texts; beyond, tenants are still told apart, adapters no more
NONE, OTHER = "none", "other"

# Table -> the labels of its rows, in order.
LABELS = {
    "in_flight": ("method",),
    "calls": ("method", "code"),
    "requests": ("model", "tenant", "priority"),
    "refused": ("reason", "model", "tenant", "priority"),
    "texts": ("model", "adapter", "tenant", "priority"),  # values: texts, tokens, truncated texts
    "errors": ("model", "error"),
    "reading": ("model",),
}


class Names:
    """Values of one label, the first ``most`` that come; what comes later is "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """The value for a name; that of the empty one is "none"."""
        if not name:
            return NONE
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


class FrontCounters:
    """Counters since the start of this process. A CallObserver; ``of_model`` gives the TextObservers."""

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self._tenants, self._adapters = Names(MAX_TENANTS), Names(MAX_ADAPTERS)
        self._max_series = max_series
        self._in_flight: defaultdict[tuple[str], int] = defaultdict(int)
        self._calls: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._refused: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
        self._texts: dict[tuple[str, str, str, str], list[int]] = {}
        self._errors: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._reading: defaultdict[tuple[str], Histogram] = defaultdict(lambda: Histogram(SECONDS))

    def started(self, method: str) -> None:
        """See CallObserver."""
        self._in_flight[(method,)] += 1

    def finished(self, method: str, status: str, seconds: float) -> None:
        """See CallObserver."""
        self._in_flight[(method,)] -= 1
        self._calls[method, status].add((seconds,))

    def refused(self, reason: str) -> None:
        """See CallObserver."""
        self._refused[reason, NONE, NONE, NONE] += 1

    def of_model(self, model: str) -> ModelCounters:
        """The TextObserver of one model, which counts here."""
        return ModelCounters(self, model)

    def as_dict(self) -> dict[str, Any]:
        """By table (``LABELS``) rows of labels and value: a number, a list of them, or a Histogram.as_dict."""
        return {
            "in_flight": _rows(self._in_flight),
            "calls": [[list(labels), each.as_dict()] for labels, each in list(self._calls.items())],
            "requests": _rows(self._requests),
            "refused": _rows(self._refused),
            "texts": _rows(self._texts),
            "errors": _rows(self._errors),
            "reading": [[list(labels), each.as_dict()] for labels, each in list(self._reading.items())],
        }

    def count_answer(
        self,
        model: str,
        terms: Terms,
        result: EmbedResult | RerankResult,
        adapters: Sequence[str],
        reading_s: float | None,
    ) -> None:
        """See ModelCounters.answered."""
        tenant, priority = self._tenants.of(terms.tenant), terms.priority.value
        self._requests[model, tenant, priority] += 1
        if reading_s is not None:
            self._reading[(model,)].add((reading_s,))
        num_tokens, originals, errors = result.num_tokens, result.num_tokens_original, result.errors
        if not errors and len(distinct := set(adapters)) < 2:
            row = self._row(model, distinct.pop() if distinct else "", tenant, priority)
            row[0] += len(num_tokens)
            row[1] += sum(num_tokens)
            row[2] += sum(map(operator.lt, num_tokens, originals))
            return
        for at, (number, original) in enumerate(zip(num_tokens, originals, strict=True)):
            if (error := errors.get(at)) is not None:
                self._errors[model, type(error).__name__] += 1
                continue
            row = self._row(model, adapters[at] if adapters else "", tenant, priority)
            row[0] += 1
            row[1] += number
            row[2] += number < original

    def count_refusal(self, model: str, terms: Terms, reason: str) -> None:
        """See ModelCounters.refused."""
        self._refused[reason, model, self._tenants.of(terms.tenant), terms.priority.value] += 1

    def _row(self, model: str, adapter: str, tenant: str, priority: str) -> list[int]:
        adapter = self._adapters.of(adapter)
        row = self._texts.get((model, adapter, tenant, priority))
        if row is None:
            if len(self._texts) >= self._max_series:
                adapter = OTHER
            row = self._texts.setdefault((model, adapter, tenant, priority), [0, 0, 0])
        return row


class ModelCounters:
    """A TextObserver that counts in a FrontCounters under its model's name."""

    def __init__(self, counters: FrontCounters, model: str) -> None:
        self._counters = counters
        self._model = model

    def answered(
        self,
        terms: Terms,
        result: EmbedResult | RerankResult,
        *,
        adapters: Sequence[str] = (),
        reading_s: float | None = None,
    ) -> None:
        """See TextObserver; texts with an error count as errors alone."""
        self._counters.count_answer(self._model, terms, result, adapters, reading_s)

    def refused(self, terms: Terms, reason: str) -> None:
        """See TextObserver."""
        self._counters.count_refusal(self._model, terms, reason)


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several FrontCounters.as_dict; it shares nothing with them. Each front bounds its own names."""
    tables: dict[str, dict[tuple[str, ...], Any]] = {name: {} for name in LABELS}
    for part in parts:
        for name, table in tables.items():
            for labels, value in part.get(name, ()):
                key = tuple(labels)
                table[key] = _sum(table[key], value) if key in table else _copy(value)
    return {name: [[list(labels), value] for labels, value in table.items()] for name, table in tables.items()}


def _rows(table: dict[Any, Any]) -> list[list[Any]]:
    return [[list(labels), _copy(value)] for labels, value in list(table.items())]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "counts": list(value["counts"])}
    return list(value) if isinstance(value, list) else value


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {**one, "counts": _sum(one["counts"], other["counts"]), "sum": one["sum"] + other["sum"]}
    return list(map(operator.add, one, other)) if isinstance(one, list) else one + other
