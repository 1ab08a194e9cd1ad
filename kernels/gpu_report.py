"""What the Triton kernels become and what they could reach: ``python -m embedmux.kernels.gpu_report FILE [CASES]``.

Compiles CASES (default 2) production shapes of every op for every part, without a GPU, and writes two tables as
Markdown. In the second nothing is measured; an op says in its cases.py what it is made from:

- ``cost(case) -> (bytes, operations)``: the least that any implementation must do. Every operand is read once and every
  result written once; a multiply and an add are two operations. Without it: the bytes of the call's tensors, which is
  all that counts where arithmetic is free.
- ``kernel_cost(case) -> (bytes, operations)``: what the Triton launches do, with tiles filled up, values computed more
  than once, intermediate results. Without it: as ``cost``.

The floor is the longer of cost's bytes and operations at the data sheet's rates. The model of our launches takes
kernel_cost at the shares of these rates that good kernels reach, and adds what every launch costs. A distance of 1.4
from the floor means that the model sees 40 % more time than the floor.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from embedmux.kernels import aot, gpus, ops

MEMORY_SHARE, TENSOR_SHARE, LAUNCH_S = 0.85, 0.6, 2e-6
HEADER = """# GPU kernels: what they compile to, and what they could reach

Made by `python -m embedmux.kernels.gpu_report bench/results/gpu_kernels.md`. The first table is what the assembler
says. **The second is modelled, nothing in it is measured**; `kernels/gpu_report.py` says how.
"""


def main(path: Path, limit: int) -> None:
    """Writes the report."""
    cases = [(op, case) for op in ops.ALL if aot.has_kernels(op) for case in spread(aot.compile_cases(op), limit)]
    calls = [aot.Call(op, case.name, aot.meta_inputs(op, case)) for op, case in cases]
    found = {(call.op.name, call.name): {t: list(aot.compile_call(call, t)) for t in gpus.TARGETS} for call in calls}
    compiled = [line for call in calls for line in compiled_rows(found[call.op.name, call.name])]
    modelled = [
        modelled_row(*pair, call, found[call.op.name, call.name]) for pair, call in zip(cases, calls, strict=True)
    ]
    sections = [
        HEADER,
        "## Compiled\n\nRegisters of a thread / KiB of shared memory of a block / share of a multiprocessor's warps;\n"
        "bold where a kernel spills registers, does not fit or misses the tensor cores.\n",
        *table(["op", "case", "kernel", *(f"sm_{target}" for target in gpus.TARGETS)], compiled),
        "\n## Modelled\n\nMicroseconds of the floor, and the distance of our launches from it. Where the floor is\n"
        "below a microsecond or two, the distance is the start of a launch.\n",
        *table(["op", "case", "MB", "Gop", "launches", *(gpu.name for gpu in gpus.GPUS)], modelled),
    ]
    path.write_text("\n".join(sections) + "\n", encoding="utf-8")


def spread(cases: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` cases, from the first to the last."""
    if len(cases) <= limit:
        return list(cases)
    return [cases[i * (len(cases) - 1) // max(limit - 1, 1)] for i in range(limit)]


def compiled_rows(kernels: dict[int, list[aot.Kernel]]) -> Iterator[list[str]]:
    """One row for each kernel of a call, a cell for each target; bold where it has a fault."""
    for launches in zip(*kernels.values(), strict=True):
        cells = [f"{k.registers} / {k.shared / gpus.KIB:.0f} / {k.occupancy:.0%}" for k in launches]
        marked = [f"**{cell}**" if k.faults else cell for cell, k in zip(cells, launches, strict=True)]
        yield [launches[0].op, launches[0].call, launches[0].name, *marked]


def modelled_row(op: Any, case: Any, call: aot.Call, kernels: dict[int, list[aot.Kernel]]) -> list[str]:
    """The floor of a call on each GPU and the modelled distance from it."""
    module = aot.cases_of(op)
    least = module.cost(case) if hasattr(module, "cost") else (tensor_bytes(call), 0)
    ours = module.kernel_cost(case) if hasattr(module, "kernel_cost") else least
    cells = []
    for gpu in gpus.GPUS:
        launches = kernels[gpu.capability]
        rate = min((gpu.rate(dot) for kernel in launches for dot in kernel.dots), default=gpu.vector)
        floor = max(least[0] / gpu.memory, least[1] / rate)
        model = max(ours[0] / gpu.memory / MEMORY_SHARE, ours[1] / rate / TENSOR_SHARE) + len(launches) * LAUNCH_S
        model += sum(ours[2:]) * 2 / gpu.vector
        cells.append(f"{floor * 1e6:.3g} µs, {model / floor:.1f}x")
    num_launches = len(next(iter(kernels.values())))
    return [op.name, case.name, f"{least[0] / 1e6:.3g}", f"{least[1] / 1e9:.3g}", str(num_launches), *cells]


def tensor_bytes(call: aot.Call) -> int:
    """Of every tensor that a call reads or returns."""
    result = call.op(*call.arguments)
    tensors = [*call.arguments, *(result if isinstance(result, tuple) else (result,))]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
