"""What a person and a program see of ``embedmux bench``: a bar while it runs, tables, JSON."""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from embedmux.client.load.plan import Plan
from embedmux.client.load.processes import Progress
from embedmux.client.load.summary import Summary
from embedmux.client.records import ModelInfo
from embedmux.server.cli import console

MESSAGE_WIDTH = 100
OURS = "x-embedmux-"  # values of other metadata may be secrets
LIBRARIES = ("embedmux", "grpcio", "numpy", "protobuf")


@contextlib.contextmanager
def progress(plan: Plan, name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr, and what moves it; nothing when nobody looks."""
    target = console.messages()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn())
    with Bar(*columns, console=target, disable=not target.is_terminal, transient=True, refresh_per_second=2) as bar:
        row = bar.add_task(name, total=plan.total_s, now="connecting")
        began: list[float] = []

        def watch(state: Progress) -> None:
            began.append(time.monotonic()) if not began else None
            failed = state.num_answered - state.num_ok
            parts = [f"{state.num_ok:,} answered", f"{state.num_in_flight:,} under way"]
            parts += [f"{failed:,} failed"] if failed else []
            bar.update(row, completed=min(time.monotonic() - began[0], plan.total_s), now=", ".join(parts))

        yield watch


def show(summary: Summary, plan: Plan, *, peak: Summary | None) -> None:
    """The figures on stdout, what to doubt in them on stderr."""
    screen = console.output()
    screen.print(f"{load_of(plan)} on {plan.target} for {summary.measured_s:.1f} s", style="bold", soft_wrap=True)
    if peak is not None:
        screen.print(
            f"the peak was {peak.achieved_rate:,.1f} requests/s, {peak.texts_rate:,.1f} texts/s", soft_wrap=True
        )
    table = Table("figure", "value", header_style="bold")
    table.columns[1].justify = "right"
    for name, value in figures(summary):
        table.add_row(name, value)
    screen.print(table)
    if (counted := statuses(summary)) is not None:
        screen.print(counted)
    found = [f"while the peak was looked for, {warning}" for warning in (peak.warnings if peak else ())]
    for warning in (*found, *summary.warnings):
        console.messages().print(f"warning: {warning}", style="yellow", soft_wrap=True)


def load_of(plan: Plan) -> str:
    """The load in a few words."""
    kind = (
        f"closed loop of {plan.workers} workers" if plan.rate is None else f"open loop at {plan.rate:,.1f} requests/s"
    )
    weights = sum(share.weight for share in plan.mix)
    mix = ", ".join(f"{share.name} {share.weight / weights:.0%}" for share in plan.mix)
    return f"{kind} of {texts_of(plan)} ({mix}; seed {plan.seed})"


def texts_of(plan: Plan) -> str:
    """The size of a request in words."""
    return "one text" if plan.texts_per_request == 1 else f"{plan.texts_per_request} texts"


def figures(summary: Summary) -> Iterator[tuple[str, str]]:
    """Rows of the first table."""
    yield "requests", f"{summary.num_requests:,}"
    yield "texts", f"{summary.num_texts:,}"
    if summary.offered_rate is not None:
        yield "offered", f"{summary.offered_rate:,.1f} requests/s"
    yield "answered OK", f"{summary.achieved_rate:,.1f} requests/s"
    yield "", f"{summary.texts_rate:,.1f} texts/s"
    yield "", f"{summary.tokens_rate:,.0f} tokens/s"
    yield f"goodput, within {summary.slo_ms:g} ms", f"{summary.goodput:,.1f} texts/s"
    for name, value in summary.latency_ms.items():
        yield f"latency {name}", f"{value:,.2f} ms"
    if summary.num_truncated:
        yield "texts that were cut", f"{summary.num_truncated:,}"
    if summary.num_push_backs:
        yield "push-backs", f"{summary.num_push_backs:,}, median {summary.push_back_p50_ms:,.0f} ms"
    if summary.num_not_sent:
        yield "not sent", f"{summary.num_not_sent:,}"
    if summary.num_cut_off:
        yield "cut off at the end", f"{summary.num_cut_off:,}"
    yield "generator: CPU", ", ".join(f"{share:.0%}" for share in summary.cpu_shares)
    yield "generator: late by, p99", f"{summary.lag_p99_ms:.2f} ms"


def statuses(summary: Summary) -> Table | None:
    """Statuses of requests and of failed texts; None where all is well."""
    if set(summary.statuses) <= {"OK"} and not summary.failed_texts:
        return None
    table = Table("of", "status", "count", "a message", header_style="bold")
    table.columns[2].justify = "right"
    for kind, counted in (("requests", summary.statuses), ("texts", summary.failed_texts)):
        for name, count in counted.items():
            message = console.shorten(summary.messages.get(name, ""), MESSAGE_WIDTH)
            table.add_row(kind, name, f"{count:,}", message, style=None if name == "OK" else "red")
    return table


def write_json(
    path: Path, summary: Summary, plan: Plan, *, peak: Summary | None, model: ModelInfo, server_version: str
) -> None:
    """All of it, for programs."""
    settings = asdict(plan)
    for name in ("process", "texts"):
        del settings[name]
    settings["num_texts_to_draw_from"] = len(plan.texts) or None
    settings["metadata"] = {key: value if key.startswith(OURS) else "(not written)" for key, value in plan.metadata}
    served = {name: getattr(model, name) for name in ("name", "digest", "family", "dtype", "device", "instruction_set")}
    document: dict[str, Any] = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": settings,
        "versions": versions() | {"server": server_version},
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.platform()},
        "model": served,
        "peak": None if peak is None else {"requests_per_s": peak.achieved_rate, "texts_per_s": peak.texts_rate},
        "results": asdict(summary),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """What the generator ran with."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found
