"""Norms, rotary positions and gated activations beside what torch computes them with, operation by operation.

bfloat16, T = 2048, one thread. The two take turns, each timed by the thread's own processor time, and the median of a
turn's ratios counts. Bytes are those of the arguments and results, each read or written once.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from harness.report import Report

from embedmux.kernels import ops
from embedmux.kernels.activation import cases as activation_cases
from embedmux.kernels.norm import cases as norm_cases
from embedmux.kernels.pre_norm import cases as pre_norm_cases
from embedmux.kernels.rope import cases as rope_cases

ROWS = 2048
WIDTHS = (384, 1024)
Call = Callable[[], object]


def norms() -> Iterator[tuple[str, int, Call, Call]]:
    """(name, bytes, ours, torch's) of add_layer_norm and of pre_norm in both kinds."""
    for width in WIDTHS:
        case = norm_cases.Case("", torch.bfloat16, ROWS, width, weight_dtype=torch.bfloat16)
        x, residual, weight, bias, eps = arguments = norm_cases.make_inputs(case, seed=0)
        size = (width,)
        yield (
            f"add_layer_norm_H{width}", case.bytes, lambda a=arguments: ops.add_layer_norm.handle(*a),
            lambda x=x, r=residual, s=size, w=weight, b=bias, e=eps: F.layer_norm(x + r, s, w, b, e),
        )  # fmt: skip
        for kind, norm in (("rms", F.rms_norm), ("layer", layer_norm)):
            pre = pre_norm_cases.Case("", torch.bfloat16, ROWS, width, True, torch.bfloat16, bias=False, kind=kind)
            yield (
                f"pre_norm_{kind}_H{width}", pre.bytes,
                lambda a=(x, residual, weight, None, eps, kind): ops.pre_norm.handle(*a),
                lambda x=x, r=residual, s=size, w=weight, e=eps, norm=norm: norm(x + r, s, w, eps=e),
            )  # fmt: skip


def layer_norm(x: torch.Tensor, size: tuple[int, ...], weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """LayerNorm without bias, called as F.rms_norm is."""
    return F.layer_norm(x, size, weight, None, eps)


def ropes() -> Iterator[tuple[str, int, Call, Call]]:
    """The heads of Qwen3 with their norms, and those of ModernBERT and of a small encoder without."""
    for case in rope_cases.BENCHMARK_CASES:
        if case.dtype == torch.bfloat16:
            arguments = rope_cases.make_inputs(replace(case, weight_dtype=torch.bfloat16), seed=0)
            yield (
                f"rope_{case.name.removesuffix('_T2048_bfloat16')}", case.bytes,
                lambda a=arguments: ops.rope.handle(*a), eager_rope(*arguments),
            )  # fmt: skip


def eager_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> Call:
    """What transformers' models do: norms of the heads, then x cos + rotate_half(x) sin, all in bfloat16."""
    cosines, sines = (torch.cat((angles, angles), 1)[positions, None].to(q.dtype) for angles in (cos, sin))

    def turned(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            x = F.rms_norm(x, (x.size(2),), weight, eps)
        first, second = x.chunk(2, 2)
        return x * cosines + torch.cat((-second, first), 2) * sines

    return lambda: (turned(q, q_weight), turned(k, k_weight))


def activations() -> Iterator[tuple[str, int, Call, Call]]:
    """The three gated activations."""
    eager = {"swiglu": F.silu, "geglu": F.gelu, "geglu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    for kind, activate in eager.items():
        for width in WIDTHS:
            case = activation_cases.Case("", torch.bfloat16, ROWS, width, kind)
            x, _ = activation_cases.make_inputs(case, seed=0)
            gate, up = x.chunk(2, 1)
            yield (
                f"{kind}_I{width}", case.bytes, lambda x=x, kind=kind: ops.gated_activation.handle(x, kind),
                lambda gate=gate, up=up, activate=activate: activate(gate) * up,
            )  # fmt: skip


def seconds_of(call: Call) -> float:
    """Processor seconds of this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def small_op_figures(report: Report, *, is_long: bool) -> None:
    """Adds torch's time over ours for each op and shape, and says what ours moves in a second."""
    turns = 60 if is_long else 15
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, size, ours, eager in (*norms(), *ropes(), *activations()):
        for _ in range(2):
            ours(), eager()
        pairs = [(seconds_of(ours), seconds_of(eager)) for _ in range(turns)]
        rate = size / statistics.median(mine for mine, _ in pairs) / 1e9
        ratio = statistics.median(other / mine for mine, other in pairs)
        report.add(f"{name}_over_torch", ratio, "x", "printed", f"{rate:.1f} GB/s")
    torch.set_num_threads(threads)
