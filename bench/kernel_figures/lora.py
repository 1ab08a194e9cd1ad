"""lora_matmul beside oneDNN's packed linear without adapters, and four adapters beside the same call without.

The calls of a shape take turns and the median of a turn's ratios counts, so that a busy machine slows them alike. On
one thread the thread's own processor time is taken: what other programs use is not in it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from harness.report import Report
from harness.timing import median_ratio

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import cases

# bfloat16 adds the low-rank part inside the product; float32 adds it to oneDNN's result, read a second time.
MIXED_BARS = {"bfloat16": 1.12, "float32": 1.20}
BASE_BAR = 0.70
TURN_SECONDS = 2e-3  # a turn repeats a short call up to about this, above the clock's grain


def _adapters(rows: int, inner: int, width: int, rank: int) -> cases.Case:
    """Four adapters in equal segments over three fused slices, bfloat16."""
    segments = tuple((rows // 4, slot) for slot in range(4))
    return cases.Case("", torch.bfloat16, inner, (width,) * 3, ((rank,) * 3,) * 4, segments)


# Name, bar of mixed over base, case.
MIXED: tuple[tuple[str, float, cases.Case], ...] = (
    ("lora_d1024", 1.08, _adapters(512, 1024, 1024, 16)),
    ("lora_d384_r16", 1.15, _adapters(1024, 384, 384, 16)),
    ("lora_d384_r32", 1.30, _adapters(1024, 384, 384, 32)),
)


def _turns(calls: Sequence[Callable[[], object]], flops: float, turns: int) -> list[list[float]]:
    """Seconds of each call in each turn; the first three turns warm up."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = max(1, round(TURN_SECONDS * 1e12 / flops))
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 3):
        for call, taken in zip(calls, seconds, strict=True):
            start = clock()
            for _ in range(repeats):
                call()
            if turn >= 3:
                taken.append((clock() - start) / repeats)
    return seconds


def _linear_of_onednn(arguments: Sequence[Any]) -> Callable[[], object]:
    """The prepacked linear that torch itself offers for the case's dtype."""
    x, weight, bias = arguments[:3]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _base_and_mixed(case: cases.Case) -> tuple[Sequence[Any], list[Callable[[], object]]]:
    """The mixed arguments, and the calls without and with adapters on one packed weight."""
    mixed = cases.make_inputs(case, seed=0)
    base = cases.make_inputs(replace(case, segments=((case.rows, -1),)), seed=0)
    call, packed = ops.lora_matmul.handle, ops.pack_weight(mixed[1])
    return mixed, [lambda: call(*base[:9], packed), lambda: call(*mixed[:9], packed)]


def _add_mixed(report: Report, turns: int) -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, bar, case in MIXED:
            base, mixed = _turns(_base_and_mixed(case)[1], case.flops, turns)
            suffix = "" if threads == 1 else "_2threads"
            report.add(
                name + suffix, median_ratio(mixed, base), "x", f"<= {bar}", f"mixed over base, {threads} threads"
            )


def lora_figures(report: Report, *, is_long: bool) -> None:
    """Adds mixed over base at the serving shapes on one and two threads, then geometric means over the linears.

    Prints one line a linear. ``is_long`` takes three times the turns. Leaves torch at one thread.
    """
    turns = 90 if is_long else 30
    _add_mixed(report, turns)
    torch.set_num_threads(1)
    print(f"{'lora_matmul':<32} {'GFLOP/s':>8} {'/ oneDNN':>9} {'mixed / base':>13}")
    ratios: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for case in cases.BENCHMARK_CASES:
        arguments, calls = _base_and_mixed(case)
        onednn, base, mixed = _turns([_linear_of_onednn(arguments), *calls], case.flops, turns)
        speed, over = median_ratio(onednn, base), median_ratio(mixed, base)
        rate = case.flops / statistics.median(base) / 1e9
        print(f"{case.name:<32} {rate:>8.0f} {speed:>9.2f} {over:>13.3f}", flush=True)
        ratios.setdefault((str(case.dtype).removeprefix("torch."), case.rows), []).append((speed, over))
    for (dtype, rows), pairs in ratios.items():
        speed, over = (statistics.geometric_mean(column) for column in zip(*pairs, strict=True))
        report.add(f"lora_matmul_base_over_onednn_{dtype}_T{rows}", speed, "x", f">= {BASE_BAR}")
        report.add(f"lora_matmul_mixed_over_base_{dtype}_T{rows}", over, "x", f"<= {MIXED_BARS[dtype]}")
