"""Times the CPU kernels: ``python bench/kernels.py``.

lora_matmul is set beside oneDNN's packed linear of the same dtype (without adapters) and, with four adapters of rank 16
in equal parts, beside itself without adapters. The variants of a shape take turns and the median of a turn's ratios
counts, so that a busy machine slows them alike. One thread by default, timed by its own processor time: what other
programs take is not in it. The last line is one JSON object: {"bench", "pass", "figures"}.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import cases

# bfloat16 adds the low-rank part inside the product; float32 adds it to oneDNN's result, read a second time.
MIXED_BARS = {"bfloat16": 1.12, "float32": 1.20}
BASE_BAR = 0.70


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its bar: ``at_most`` tells on which side of it the number must stay."""

    name: str
    value: float
    unit: str
    bar: float
    at_most: bool

    def as_record(self) -> dict[str, Any]:
        """The figure as it stands in the last line."""
        passes = self.value <= self.bar if self.at_most else self.value >= self.bar
        return {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "bar": self.bar,
            "pass": passes,
        }


def turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of every call in every turn; the calls take turns, the first three turns warm up."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="timed turns a shape")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"instruction set {ops.cpu_isa()}, {arguments.threads} threads, backends {ops.backends('cpu')}")
    print(f"{'lora_matmul':<32} {'GFLOP/s':>8} {'/ oneDNN':>9} {'mixed / base':>13}")
    speeds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for case in cases.BENCHMARK_CASES:
        base, onednn, mixed = compare(case, arguments.repeats)
        print(f"{case.name:<32} {case.flops / base / 1e9:>8.0f} {onednn:>9.2f} {mixed:>13.3f}", flush=True)
        kind = str(case.dtype).removeprefix("torch."), case.rows
        speeds.setdefault(kind, []).append((onednn, mixed))
    figures = []
    for (dtype, rows), ratios in speeds.items():
        base_speed, mixed_time = (statistics.geometric_mean(column) for column in zip(*ratios, strict=True))
        figures += [
            Figure(f"lora_matmul_base_over_onednn_{dtype}_T{rows}", base_speed, "x", BASE_BAR, at_most=False),
            Figure(f"lora_matmul_mixed_over_base_{dtype}_T{rows}", mixed_time, "x", MIXED_BARS[dtype], at_most=True),
        ]
    records = [figure.as_record() for figure in figures]
    print(json.dumps({"bench": "kernels", "pass": all(record["pass"] for record in records), "figures": records}))


if __name__ == "__main__":
    main()
