"""Every model family: exact, and thrifty. ``make bench NAME=backbones``; LONG=1 takes all the full sizes."""

import sys
from pathlib import Path

from backbone_figures.memory import memory_figures
from backbone_figures.parity import parity_figures
from backbone_figures.reuse import reuse_figures
from harness.report import Report


def measure(data: Path | None, *, is_long: bool) -> Report:
    """``data`` gives the real queries of prefix_reuse."""
    report = Report("backbones")
    if not Path("/proc/self/status").exists():
        print("no /proc here: load_memory cannot be measured", file=sys.stderr)
    memory_figures(report)
    reuse_figures(report, data, is_long=is_long)
    parity_figures(report, is_long=is_long)
    return report
