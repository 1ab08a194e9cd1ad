"""The Triton kernels on a GPU, beside cuBLAS: ``make bench NAME=gpu``. Without one, no figure has a value.

lora_matmul in bfloat16 against the bare product by cuBLAS, and against the segmented pair of shrink and expand beside
that product (what servers of language models do), over tokens, widths, ranks and numbers of adapters. Attention
against torch's own on equal lengths. Every result is compared with the float64 reference before it is timed.
"""

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness.report import Report

from embedmux.kernels import ops
from embedmux.kernels.attention import cases as attention_cases
from embedmux.kernels.lora_matmul import cases as lora_cases

TOKENS, WIDTHS, RANKS, ADAPTERS = (2048, 16384), (384, 768, 1024), (8, 16, 64), (1, 4, 64)
NAMES = ("lora_over_cublas", "unfused_over_cublas", "attention_over_torch")
BFLOAT16 = torch.bfloat16
ALIGNMENT = 32  # elements: factors lie in the arena as the server's do


def measure(_: Path | None, *, is_long: bool) -> Report:
    """Geometric means over the shapes; ``is_long`` takes five times the turns."""
    report = Report("gpu")
    if not torch.cuda.is_available():
        for name in NAMES:
            report.add(name, None, "x time", "printed", "needs a CUDA device")
        return report
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, backends {ops.backends('cuda')}")
    turns = 100 if is_long else 20
    for name, ratios in {**lora_ratios(turns), "attention_over_torch": attention_ratios(turns)}.items():
        report.add(name, statistics.geometric_mean(ratios), "x time", "printed", f"{len(ratios)} shapes")
    return report


def lora_ratios(turns: int) -> dict[str, list[float]]:
    """Time over that of cuBLAS's product without adapters, for QKV layers."""
    from embedmux.kernels.lora_matmul.cuda_unfused import lora_matmul_unfused  # noqa: PLC0415 - needs Triton

    found: dict[str, list[float]] = {name: [] for name in NAMES[:2]}
    print(f"{'lora_matmul':<32} {'cuBLAS us':>10} {'fused':>7} {'unfused':>8}")
    for rows, width, rank, adapters in itertools.product(TOKENS, WIDTHS, RANKS, ADAPTERS):
        segments = tuple((rows // adapters, slot) for slot in range(adapters))
        name = f"T{rows}_d{width}_r{rank}_a{adapters}"
        case = lora_cases.Case(
            name, BFLOAT16, width, (width,) * 3, ((rank,) * 3,) * adapters, segments, alignment=ALIGNMENT
        )
        arguments = on_gpu(lora_cases.make_inputs(case, seed=0))
        check(ops.lora_matmul.handle(*arguments), ops.lora_matmul.reference(*arguments), lora_cases.tolerance(case))
        calls = (
            lambda a=arguments: F.linear(a[0], a[1], a[2]),
            lambda a=arguments: ops.lora_matmul.handle(*a),
            lambda a=arguments: lora_matmul_unfused(*a),
        )
        base, fused, unfused = times(calls, turns)
        print(f"{name:<32} {base * 1e6:>10.1f} {fused / base:>7.2f} {unfused / base:>8.2f}", flush=True)
        found["lora_over_cublas"].append(fused / base)
        found["unfused_over_cublas"].append(unfused / base)
    return found


def attention_ratios(turns: int) -> list[float]:
    """Time over that of torch's scaled_dot_product_attention, which gets the same sequences at one length."""
    found = []
    for count, length, heads, key_heads, depth in ((64, 24, 12, 12, 32), (32, 128, 12, 12, 64), (8, 512, 16, 8, 128)):
        case = attention_cases.Case("", BFLOAT16, (length,) * count, heads, key_heads, depth)
        arguments = on_gpu(attention_cases.make_inputs(case, seed=0))
        expected = ops.attention.reference(*arguments)
        check(ops.attention.handle(*arguments), expected, attention_cases.tolerance(case))
        q, k, v = (
            part.reshape(count, length, part.size(1), depth).transpose(1, 2).contiguous() for part in arguments[:3]
        )
        calls = (
            lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            lambda a=arguments: ops.attention.handle(*a),
        )
        theirs, ours = times(calls, turns)
        print(f"attention {count} x {length}, {heads} of {depth}: {ours / theirs:.2f} of torch's time", flush=True)
        found.append(ours / theirs)
    return found


def on_gpu(arguments: tuple[Any, ...]) -> list[Any]:
    """Tensors moved, the rest as it is."""
    return [argument.cuda() if isinstance(argument, torch.Tensor) else argument for argument in arguments]


def check(found: torch.Tensor, expected: torch.Tensor, tolerance: tuple[float, float]) -> None:
    """Refuses to time what is wrong; the reference here sums in float32, hence the wider bounds."""
    rtol, atol = tolerance
    torch.testing.assert_close(found.float(), expected.float(), rtol=4 * rtol, atol=4 * atol)


def times(calls: tuple[Callable[[], object], ...], turns: int) -> list[float]:
    """Median seconds of each call on the device, taken in turns as captured graphs: no launch costs in it."""
    graphs = []
    for call in calls:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            call()
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graphs.append(graph)
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 3):
        for graph, row in zip(graphs, seconds, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 3:
                row.append(start.elapsed_time(end) / 1e3)
    return [statistics.median(row) for row in seconds]
