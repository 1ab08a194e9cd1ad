"""Every kernel on the CPU beside its yardstick: ``make bench NAME=kernels``. One file of bench/kernel_figures a kernel.

Both sides of a figure take turns in one run and the median of the turns' ratios counts. Other libraries run in their
own environment (bench/harness/peers.py); where that cannot be made, their figures have no value and do not pass.
"""

import contextlib
from pathlib import Path

from harness.peers import open_peers
from harness.report import Report
from kernel_figures.attention import attention_figures
from kernel_figures.lora import lora_figures
from kernel_figures.pool import pool_figures
from kernel_figures.pq_maxsim import late_figures
from kernel_figures.recall import recall_figures
from kernel_figures.similarity import similarity_figures
from kernel_figures.small_ops import small_op_figures

from embedmux.kernels import ops


def measure(data: Path | None, *, is_long: bool) -> Report:
    """``is_long`` takes more turns; ``data`` gives the real documents of the recall figures."""
    print(f"instruction set {ops.cpu_isa()}, backends {ops.backends('cpu')}")
    report = Report("kernels")
    with contextlib.ExitStack() as stack:
        peers = open_peers()
        if peers is not None:
            stack.enter_context(peers)
        similarity_figures(report, peers, is_long=is_long)
        late_figures(report, peers, is_long=is_long)
    lora_figures(report, is_long=is_long)
    attention_figures(report, is_long=is_long)
    small_op_figures(report, is_long=is_long)
    pool_figures(report, is_long=is_long)
    recall_figures(report, data)
    return report
