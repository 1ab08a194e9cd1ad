"""The server as a fleet sees it: speed behind gRPC, tails, overload, fairness, drain, recovery, hours.

The load generator runs on the same cores; its share is printed with the figures. Cache and coalescing are off, all
texts are distinct, MiniLM in bfloat16, tasks mixed. ``PARTS=rates,tail`` measures some of the parts only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.report import Report
from serving_figures.endings import drains, recoveries
from serving_figures.fairness import deadline_error, fair_shares
from serving_figures.latency import tail_at_70
from serving_figures.overload import overload, refusals_for_half_the_machine
from serving_figures.rates import rates
from serving_figures.requests import Texts
from serving_figures.simulation import simulate
from serving_figures.soak import soak

RESULTS = Path(__file__).parents[1] / "results"
FIGURES = {
    "rates": {"batched_over_engine": ">= 0.85", "unary_over_infinity": ">= 4", "unary_over_floor": ">= 0.5"},
    "tail": {"p99_at_70": "<= 4"},
    "overload": {"overload_goodput": ">= 0.85", "overload_late": "<= 0", "overload_unanswered": "<= 0"},
    "refusals": {"refuse_cost": "printed"},
    "fairness": {"fair_share_error": "<= 0.05", "deadline_error_p95": "<= 0.25"},
    "endings": {"drain_lost": "<= 0", "engine_recovery_s": "<= 5", "engine_unanswered": "<= 0"},
    "soak": {"soak_drift": "<= 0.02", "soak_errors": "<= 0"},
    "simulation": {
        "sim_p99_over_fifo": "printed", "sim_p99_over_sorted": "printed",
        "sim_throughput_over_fifo": "printed", "sim_throughput_over_sorted": "printed",
    },
}  # fmt: skip
UNITS = {"refuse_cost": "refusals/s", "engine_recovery_s": "s", "drain_lost": "requests", "overload_late": "answers"}


def measure(data: Path | None, *, is_long: bool) -> Report:
    """Every figure; those that need texts are null without ``data``."""
    report = Report("serving")
    texts = Texts(data) if data else None
    parts: dict[str, Callable[[Texts, bool], dict[str, tuple[float | None, str]]]] = {
        "rates": rate_figures,
        "tail": tail_figures,
        "overload": overload_figures,
        "refusals": refusal_figures,
        "fairness": fairness_figures,
        "endings": ending_figures,
        "soak": soak_figures,
    }
    chosen = os.environ.get("PARTS", ",".join(FIGURES)).split(",")
    for part, bars in FIGURES.items():
        found: dict[str, tuple[float | None, str]] = {}
        try:
            if part in chosen and part == "simulation":
                found = simulation_figures()
            elif part in chosen and texts is not None:
                found = parts[part](texts, is_long)
        except RuntimeError as error:  # the others are still worth their half hour
            print(f"{part}: {error}", file=sys.stderr)
        for name, bar in bars.items():
            value, note = found.get(name, (None, "not measured"))
            report.add(name, value, UNITS.get(name, "ratio"), bar, note)
    return report


def rate_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """Speed behind gRPC."""
    found = rates(texts)
    over_infinity = None if found.infinity is None else found.unary / found.infinity
    against = "no infinity" if found.infinity is None else f"{found.unary:.0f} to {found.infinity:.0f} texts/s"
    return {
        "batched_over_engine": (
            found.batched_over_engine,
            f"{found.batched:.0f} to {found.engine:.0f} texts/s; generator {found.generator_batched:.2f} cores",
        ),
        "unary_over_infinity": (over_infinity, against),
        "unary_over_floor": (
            found.unary_over_floor,
            f"{found.unary:.0f} to {found.engine:.0f} and {found.echo:.0f}/s; "
            f"generator {found.generator_unary:.2f} cores",
        ),
    }


def tail_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """Interactive latency beside bulk work."""
    found = tail_at_70(texts)
    note = (
        f"p99 {1e3 * found.p99_s:.0f} ms, p50 {1e3 * found.p50_s:.0f}, full batch {1e3 * found.full_batch_s:.0f}; "
        f"{found.bulk_texts_a_second:.0f} long texts/s beside"
    )
    return {"p99_at_70": (found.p99_s / found.full_batch_s, note)}


def overload_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """Three times the peak."""
    found = overload(texts)
    note = f"{found.answered} answered, {found.refused} refused; generator {found.generator_cores:.2f} cores"
    return {
        "overload_goodput": (found.goodput, note),
        "overload_late": (found.late, ""),
        "overload_unanswered": (found.unanswered, ""),
    }


def refusal_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """What a refusal costs."""
    return {"refuse_cost": (refusals_for_half_the_machine(texts), "from processor time of the front for each")}


def fairness_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """Tenants' shares, and predictions."""
    found = fair_shares(texts)
    parts = ", ".join(f"{name} {part:.3f}" for name, part in found.parts.items())
    return {
        "fair_share_error": (found.error, f"{parts}; the larger relative error"),
        "deadline_error_p95": (deadline_error(texts), "32 texts a request at 70 % and 90 % of the peak"),
    }


def ending_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """SIGTERM and kill -9 under load."""
    num_drains, num_kills = (100, 20) if is_long else (20, 5)
    found = recoveries(texts, num_kills)
    return {
        "drain_lost": (drains(texts, num_drains), f"{num_drains} times"),
        "engine_recovery_s": (found.seconds, f"the longest of {found.kills}"),
        "engine_unanswered": (found.unanswered, ""),
    }


def soak_figures(texts: Texts, is_long: bool) -> dict[str, tuple[float | None, str]]:
    """Minutes of mixed traffic."""
    found = soak(texts, float(os.environ.get("SOAK_S", 3600 if is_long else 600)))
    for error in found.errors[:20]:
        print(f"soak: {error}")
    return {
        "soak_drift": (found.drift, f"{found.calls} calls, {found.megabytes:.0f} MB"),
        "soak_errors": (len(found.errors), ""),
    }


def simulation_figures() -> dict[str, tuple[float | None, str]]:
    """Our scheduler against two others."""
    names = FIGURES["simulation"]
    notes = ("p99 ours over first come", "p99 ours over shortest first", "work of first come over ours", "of shortest")
    found = simulate(RESULTS / "serving_simulation.png" if os.environ.get("SAVE") == "1" else None)
    return {name: (value, note) for name, value, note in zip(names, found, notes, strict=True)}
