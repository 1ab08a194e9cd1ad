"""From nothing to the first vector, and what a server holds in memory: MiniLM in bfloat16 with its four adapters."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psutil
from harness.report import Report
from harness.servers import serving
from rich.progress import track

from embedmux.client.blocking import Client
from embedmux.client.texts import Text

STARTS = 20
TASKS = ("text-matching", "classification", "clustering")


def start_figures(report: Report, *, is_long: bool) -> None:
    """Adds start_seconds and rss_mb."""
    seconds, megabytes = [], 0.0
    for turn in track(range(STARTS * (2 if is_long else 1)), description="starts"):
        started = time.perf_counter()
        with serving("--dtype", "bfloat16") as address, Client(address) as client:
            client.embed("a first text")
            seconds.append(time.perf_counter() - started)
            if turn == 0:
                client.embed([Text(f"river number {i}", task=TASKS[i % 3]) for i in range(512)])
                megabytes = memory_of_servers() / 1e6
    report.add("start_seconds", statistics.median(seconds), "s", "<= 2.5", "embedmux serve to its first vector, median")
    report.add("rss_mb", megabytes, "MB", "printed", "front + engine, proportional set size; 600 is the aim")


def memory_of_servers() -> float:
    """Bytes of this process's children and theirs, shared pages by their share."""
    found = psutil.Process().children(recursive=True)
    return float(sum(process.memory_full_info().pss for process in found if is_ours(process)))


def is_ours(process: psutil.Process) -> bool:
    """Whether it is a server or its engine, and not a peer."""
    return any("embedmux" in Path(part).name or "embedmux" in part for part in process.cmdline())
