"""The CPU kernels on their own, side by side with what torch offers.

lora_matmul is set beside oneDNN's packed linear of the same dtype (without adapters) and, with four adapters of rank 16
in equal parts, beside itself without adapters. The variants of a shape take turns and the median of a turn's ratios
counts, so that a busy machine slows them alike. One thread, timed by its own processor time: what other programs take
is not in it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness.report import Report

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import cases

# bfloat16 adds the low-rank part inside the product; float32 adds it to oneDNN's result, read a second time.
MIXED_BARS = {"bfloat16": 1.12, "float32": 1.20}
BASE_BAR = 0.70


def turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of every call in every turn; the calls take turns, the first three turns warm up."""
    clock = time.thread_time
    seconds = []
    for turn in range(repeats + 3):
        row = []
        for call in calls:
            start = clock()
            call()
            row.append(clock() - start)
        if turn >= 3:
            seconds.append(row)
    return seconds


def linear_of_onednn(arguments: Sequence[Any]) -> Callable[[], object]:
    """The prepacked linear that torch itself offers for the case's dtype."""
    x, weight, bias = arguments[:3]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def compare(case: cases.Case, repeats: int) -> tuple[float, float, float]:
    """Median seconds without adapters, and median ratios: of oneDNN to that, and of four adapters to that."""
    mixed = cases.make_inputs(case, seed=0)[:-1]
    base = cases.make_inputs(replace(case, segments=((case.rows, -1),)), seed=0)[:-1]
    call, packed, median = ops.lora_matmul.handle, ops.pack_weight(mixed[1]), statistics.median
    calls = [linear_of_onednn(mixed), lambda: call(*base, packed), lambda: call(*mixed, packed)]
    seconds = turns(calls, repeats)
    return (
        median(alone for _, alone, _ in seconds),
        median(onednn / alone for onednn, alone, _ in seconds),
        median(together / alone for _, alone, together in seconds),
    )


def measure(_: Path | None, *, is_long: bool) -> Report:
    """Geometric means over the shapes of each dtype and number of rows; ``is_long`` takes three times the turns."""
    repeats = 90 if is_long else 30
    torch.set_num_threads(1)
    print(f"instruction set {ops.cpu_isa()}, backends {ops.backends('cpu')}")
    print(f"{'lora_matmul':<32} {'GFLOP/s':>8} {'/ oneDNN':>9} {'mixed / base':>13}")
    speeds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for case in cases.BENCHMARK_CASES:
        base, onednn, mixed = compare(case, repeats)
        print(f"{case.name:<32} {case.flops / base / 1e9:>8.0f} {onednn:>9.2f} {mixed:>13.3f}", flush=True)
        kind = str(case.dtype).removeprefix("torch."), case.rows
        speeds.setdefault(kind, []).append((onednn, mixed))
    report = Report("kernels")
    for (dtype, rows), ratios in speeds.items():
        base_speed, mixed_time = (statistics.geometric_mean(column) for column in zip(*ratios, strict=True))
        report.add(f"lora_matmul_base_over_onednn_{dtype}_T{rows}", base_speed, "x", f">= {BASE_BAR}")
        report.add(f"lora_matmul_mixed_over_base_{dtype}_T{rows}", mixed_time, "x", f"<= {MIXED_BARS[dtype]}")
    return report
