"""attention beside torch's scaled_dot_product_attention: bfloat16, 12 heads of 32, the same number of threads.

torch gets its best case: a dense [B, H, L, D] batch of equal lengths, nothing padded. Ours gets what a server has:
packed sequences, q, k and v as views of one projection. The figure is the median over rounds of how many times more
flops (of both products) a second ours does; where lengths are equal that is the ratio of the times.
"""

import statistics
import time
from collections.abc import Callable

import torch
from harness.report import Report

from embedmux.kernels import ops
from embedmux.kernels.attention import cases

HEADS, DEPTH, THREADS = 12, 32, 2
# name, lengths of the packed sequences, length of torch's, calls in a row, bar
SHAPES = (
    ("attn_short", tuple(8 + place * 33 // 64 for place in range(64)), 24, 8, 3.0),
    ("attn_mid", (128,) * 16, 128, 5, 3.0),
    ("attn_long", (512,) * 4, 512, 3, 1.5),
)


def attention_figures(report: Report, *, is_long: bool) -> None:
    """Adds attn_short, attn_mid and attn_long; ``is_long`` takes three times the rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for name, lengths, dense_length, calls, bar in SHAPES:
            ratio = flops_ratio(lengths, dense_length, calls, rounds=60 if is_long else 20)
            report.add(name, ratio, "x", f">= {bar:g}", f"flops/s over torch's SDPA, {THREADS} threads")
    finally:
        torch.set_num_threads(threads)


def flops_ratio(lengths: tuple[int, ...], dense_length: int, calls: int, rounds: int) -> float:
    """Flops per second of ours over torch's, taking turns; the first three rounds warm up."""
    ours = cases.Case("ours", torch.bfloat16, lengths, HEADS, HEADS, DEPTH)
    theirs = cases.Case("theirs", torch.bfloat16, (dense_length,) * len(lengths), HEADS, HEADS, DEPTH)
    check_agreement(theirs)
    arguments, dense = cases.make_inputs(ours, seed=0), dense_of(theirs, seed=0)
    ratios = []
    for turn in range(rounds + 3):
        mine = seconds_of(lambda: ops.attention.handle(*arguments), calls)
        other = seconds_of(lambda: torch.nn.functional.scaled_dot_product_attention(*dense), calls)
        if turn >= 3:
            ratios.append(other / mine * ours.flops / theirs.flops)
    return statistics.median(ratios)


def dense_of(case: cases.Case, seed: int) -> list[torch.Tensor]:
    """q, k and v of sequences of one length as contiguous [B, H, L, D]."""
    shape = (len(case.lengths), case.lengths[0], HEADS, DEPTH)
    return [part.reshape(shape).transpose(1, 2).contiguous() for part in cases.make_inputs(case, seed)[:3]]


def check_agreement(case: cases.Case) -> None:
    """Both sides must compute the same thing before their times mean anything."""
    found = ops.attention(*cases.make_inputs(case, seed=1)).view(len(case.lengths), -1, HEADS, DEPTH)
    expected = torch.nn.functional.scaled_dot_product_attention(*dense_of(case, seed=1)).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1.6e-2)


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Seconds of `calls` calls one after the other; each result is dropped before the next."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started
