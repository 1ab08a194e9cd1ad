"""pool_encode beside the three steps it joins: pool_normalize, the look for values that are not finite, quantize_rows.

Short texts, 64 of 32 tokens in bfloat16, on one thread, timed by its own processor time: what other programs take is
not in it. The two ways take turns, and the median of a turn's ratios counts.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness.report import Report

from embedmux.kernels import ops
from embedmux.kernels.pool_encode.cases import Case, make_inputs

LENGTHS = (32,) * 64
CALLS = 8  # in one turn, since a call takes less than a tenth of a millisecond


def seconds_of(call: Callable[[], object]) -> float:
    """One call's share of the thread's time."""
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS


def joined(arguments: Any) -> bool:
    """One pass, and what the server asks of its flags."""
    _, finite = ops.pool_encode.handle(*arguments)
    return bool(finite.all())


def in_three_steps(arguments: Any) -> bool:
    """The same bytes by way of float32 vectors."""
    hidden, *_, offsets, _, pooling, dimensions, normalize, encoding, ranges = arguments
    vectors = ops.pool_normalize.handle(hidden, offsets, pooling, dimensions, normalize)
    finite = bool(torch.isfinite(vectors).all())
    if encoding != "float32":
        ops.quantize_rows.handle(vectors, encoding, ranges)
    return finite


def pool_figures(report: Report, *, is_long: bool) -> None:
    """Time of the three steps over that of the one, for two sizes and two encodings; ``is_long`` takes three times the
    turns.
    """
    turns = 300 if is_long else 100
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for width in (384, 1024):
        for encoding in ("int8", "float32"):
            case = Case("", torch.bfloat16, LENGTHS, width, width, encoding=encoding)
            arguments = make_inputs(case, seed=0)
            pairs = [
                (seconds_of(lambda a=arguments: in_three_steps(a)), seconds_of(lambda a=arguments: joined(a)))
                for _ in range(turns + 3)
            ][3:]
            ratio = statistics.median(steps / one for steps, one in pairs)
            microseconds = 1e6 * statistics.median(one for _, one in pairs)
            rate = case.bytes / microseconds / 1e3
            report.add(
                f"pool_encode_over_three_steps_{encoding}_H{width}", ratio, "x", "printed",
                f"{microseconds:.0f} us, {rate:.0f} GB/s of states",
            )  # fmt: skip
    torch.set_num_threads(threads)
