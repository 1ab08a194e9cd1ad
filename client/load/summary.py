"""The figures of a run: what was offered, answered and refused, how long it took, and what to doubt."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from embedmux.client.load.answers import OK, Answers, name_of
from embedmux.client.load.plan import Plan

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
# Dense where tails are: 1 - 10^-k in ten steps a decade, up to one in 100,000.
CURVE = (*(100 * (1 - 10 ** (-step / 10)) for step in range(51)), 100.0)
MAX_CPU_SHARE = 0.8  # of a core; above it requests wait for the generator
MAX_LAG_MS, MAX_LAG_SHARE = 5.0, 0.05  # at p99, and of the p99 latency: less does not move what is shown
MIN_KEPT = 0.95  # answers in a second, of the arrivals
NUM_INTERVALS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """Part of the measured time. Latencies are of requests due in it, None where none was answered OK."""

    start_s: float
    texts_per_s: float
    failed_per_s: float
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's figures, warm-up left out. Latencies are of requests answered OK, in ms after they were due.

    ``offered_rate`` is None in a closed loop. ``achieved_rate`` counts OK answers that came in the measured time,
    ``goodput`` the texts of requests due in it that were answered within the SLO, both a second. ``statuses`` and
    ``failed_texts`` count by gRPC status. ``lag_p99_ms`` is how late the generator itself sent. ``curve`` are pairs of
    a percentile and its latency.
    """

    measured_s: float
    num_requests: int
    num_texts: int
    num_texts_ok: int
    offered_rate: float | None
    achieved_rate: float
    texts_rate: float
    tokens_rate: float
    goodput: float
    slo_ms: float
    latency_ms: dict[str, float]
    mean_ms: float | None
    statuses: dict[str, int]
    failed_texts: dict[str, int]
    messages: dict[str, str]
    num_push_backs: int
    push_back_p50_ms: float | None
    num_not_sent: int
    num_cut_off: int
    num_truncated: int
    cpu_shares: tuple[float, ...]
    lag_p99_ms: float
    intervals: tuple[Interval, ...]
    curve: tuple[tuple[float, float], ...]
    warnings: tuple[str, ...]


def summarise(answers: Answers, plan: Plan, *, slo_ms: float) -> Summary:
    """The figures of ``answers`` to ``plan``."""
    start, end = plan.warm_up_s, answers.ended_s
    measured_s = max(end - start, 0.0)
    per_s = 1 / measured_s if measured_s else 0.0
    is_due, is_in_time = answers.scheduled >= start, (answers.done >= start) & (answers.done < end)
    is_ok = (answers.code == OK) & (answers.texts_ok > 0)
    latency_ms = (answers.done - answers.scheduled) * 1000
    ok_ms = latency_ms[is_due & is_ok]
    num_not_sent = int(np.count_nonzero(answers.not_sent >= start))
    num_requests = int(np.count_nonzero(is_due)) + num_not_sent + answers.num_cut_off
    lags_ms = (answers.sent - answers.scheduled)[is_due] * 1000
    summary = Summary(
        measured_s=measured_s,
        num_requests=num_requests,
        num_texts=int(answers.texts[is_due].sum()),
        num_texts_ok=int(answers.texts_ok[is_due].sum()),
        offered_rate=None if plan.rate is None else num_requests * per_s,
        achieved_rate=float(np.count_nonzero(is_ok & is_in_time)) * per_s,
        texts_rate=float(answers.texts_ok[is_in_time].sum()) * per_s,
        tokens_rate=float(answers.tokens[is_in_time].sum()) * per_s,
        goodput=float(answers.texts_ok[is_due & is_ok & (latency_ms <= slo_ms)].sum()) * per_s,
        slo_ms=slo_ms,
        latency_ms=percentiles(ok_ms),
        mean_ms=float(ok_ms.mean()) if len(ok_ms) else None,
        statuses=counts(answers.code[is_due]),
        failed_texts=answers.failed_texts,
        messages=answers.messages,
        num_push_backs=len(answers.push_backs_ms),
        push_back_p50_ms=float(np.median(answers.push_backs_ms)) if len(answers.push_backs_ms) else None,
        num_not_sent=num_not_sent,
        num_cut_off=answers.num_cut_off,
        num_truncated=answers.num_truncated,
        cpu_shares=answers.cpu_shares,
        lag_p99_ms=float(np.percentile(lags_ms, 99)) if len(lags_ms) else 0.0,
        intervals=intervals(answers, is_ok, start=start, end=end),
        curve=tuple(zip(CURVE, np.percentile(ok_ms, CURVE).tolist(), strict=True)) if len(ok_ms) else (),
        warnings=(),
    )
    return with_warnings(summary, plan)


def percentiles(latency_ms: npt.NDArray[np.float64]) -> dict[str, float]:
    """The percentiles that are shown; empty where nothing was answered."""
    if not len(latency_ms):
        return {}
    return {name: float(np.percentile(latency_ms, percent)) for name, percent in PERCENTILES.items()}


def counts(codes: npt.NDArray[np.uint8]) -> dict[str, int]:
    """How many requests ended with each status, the most frequent first."""
    found = zip(*np.unique(codes, return_counts=True), strict=True)
    return {name_of(int(code)): int(count) for code, count in sorted(found, key=lambda pair: -int(pair[1]))}


def intervals(answers: Answers, is_ok: npt.NDArray[np.bool_], *, start: float, end: float) -> tuple[Interval, ...]:
    """Texts and latencies over the measured time."""
    if end <= start:
        return ()
    edges = np.linspace(start, end, NUM_INTERVALS + 1)
    width, latency_ms, found = edges[1] - edges[0], (answers.done - answers.scheduled) * 1000, []
    due = places(answers.scheduled, edges)
    ended = places(answers.done, edges)
    texts = np.bincount(ended, answers.texts_ok, NUM_INTERVALS + 2)
    failed = np.bincount(ended, answers.texts - answers.texts_ok, NUM_INTERVALS + 2)
    for place, edge in enumerate(edges[:-1], start=1):
        ok_ms = latency_ms[is_ok & (due == place)]
        p50, p99 = np.percentile(ok_ms, (50, 99)).tolist() if len(ok_ms) else (None, None)
        found.append(Interval(float(edge - start), float(texts[place] / width), float(failed[place] / width), p50, p99))
    return tuple(found)


def places(times: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The interval of each time, from 1; 0 is before the first and len(edges) after the last."""
    return np.searchsorted(edges, times, side="right").astype(np.int64)


def with_warnings(summary: Summary, plan: Plan) -> Summary:
    """The summary with what to doubt in it."""
    return replace(summary, warnings=tuple(doubts(summary, plan)))


def doubts(summary: Summary, plan: Plan) -> Iterator[str]:
    """Reasons why the figures may show something other than the server."""
    busiest = max(summary.cpu_shares, default=0.0)
    if busiest > MAX_CPU_SHARE:
        yield (
            f"a load process used {busiest:.0%} of a core, the limit is {MAX_CPU_SHARE:.0%}: these numbers show the "
            "generator as well as the server; add --processes, or a machine of its own"
        )
    if summary.lag_p99_ms > max(MAX_LAG_MS, MAX_LAG_SHARE * summary.latency_ms.get("p99", 0.0)):
        yield (
            f"the generator fell behind its schedule, by {summary.lag_p99_ms:.1f} ms at p99, the limit is "
            f"{MAX_LAG_MS:g} ms or {MAX_LAG_SHARE:.0%} of the latency: these numbers show the generator; "
            "add --processes, or a machine of its own"
        )
    if summary.num_not_sent:
        yield (
            f"{summary.num_not_sent:,} requests were not sent, since {plan.max_in_flight:,} were under way "
            "(--max-in-flight): the latencies leave them out and so are too good"
        )
    if summary.offered_rate and summary.achieved_rate < MIN_KEPT * summary.offered_rate:
        yield (
            f"{summary.achieved_rate:,.1f} of {summary.offered_rate:,.1f} requests/s were answered OK: where the "
            "server cannot keep up, latency depends on how long the run is; lower --rate"
        )
