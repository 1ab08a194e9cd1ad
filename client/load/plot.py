"""A run as a picture: latency by percentile, latency and throughput over time. Needs embedmux[plot]."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from embedmux.client.load.summary import Summary

TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
LATENCY, TAIL, TEXTS, FAILED = "#1f6fb4", "#c23b22", "#4a8f3c", "#999999"
INCHES, DOTS_PER_INCH = (12.0, 4.2), 150


def plot(summary: Summary, path: Path, *, title: str) -> None:
    """Writes the picture; the suffix of ``path`` says as what."""
    figure = Figure(figsize=INCHES, layout="constrained")
    figure.suptitle(title, fontsize=11)
    tails, times = figure.subplots(1, 2)
    draw_tails(tails, summary)
    draw_times(times, summary)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_tails(axes: Any, summary: Summary) -> None:
    """Latency over percentiles, each further nine as wide as the one before."""
    percents, latencies = zip(*summary.curve[:-1], strict=True) if summary.curve else ((), ())
    axes.plot([nines(percent) for percent in percents], latencies, color=LATENCY)
    axes.axhline(summary.slo_ms, color=TAIL, linestyle=":", linewidth=1)
    axes.annotate(f"SLO {summary.slo_ms:g} ms", (nines(0), summary.slo_ms), va="bottom", fontsize=8, color=TAIL)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([nines(tick) for tick in TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in TICKS])
    axes.set(xlabel="percentile", ylabel="latency, ms", title="latency of requests answered OK")
    axes.grid(alpha=0.3)


def draw_times(axes: Any, summary: Summary) -> None:
    """Latency and texts a second over the measured time."""
    seconds = [interval.start_s for interval in summary.intervals]
    not_a_number = float("nan")
    for name, color in (("p50_ms", LATENCY), ("p99_ms", TAIL)):
        found = [getattr(interval, name) for interval in summary.intervals]
        values = [not_a_number if value is None else value for value in found]
        axes.plot(seconds, values, color=color, label=f"{name.removesuffix('_ms')} latency")
    axes.set_yscale("log")
    axes.set(xlabel="seconds", ylabel="latency, ms", title="over time")
    other = axes.twinx()
    other.step(seconds, [part.texts_per_s for part in summary.intervals], color=TEXTS, label="texts/s", where="post")
    other.step(seconds, [part.failed_per_s for part in summary.intervals], color=FAILED, label="failed/s", where="post")
    other.set(ylabel="texts/s")
    other.set_ylim(bottom=0)
    handles = [line for part in (axes, other) for line in part.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8, loc="best")
    axes.grid(alpha=0.3)


def nines(percent: float) -> float:
    """Where a percentile stands on the logarithmic axis: 1 at 0, 10 at 90, 100 at 99."""
    return 1 / (1 - percent / 100)
