"""Every Triton kernel compiled for every part without a GPU: no spills, within the part's limits, on tensor cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedmux.kernels import aot, gpus, ops
from embedmux.kernels.library import Op

PROBE = Path(__file__).with_name("aot_probe.py")


def probe(cache: Path, *words: str) -> list[dict[str, Any]]:
    """aot_probe.py's answer; Triton's cache lies in ``cache``."""
    without = ("TRITON_INTERPRET", "PYTHONSAFEPATH")  # the probe imports its neighbour
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(PROBE), *words]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_every_kernel_compiles_for_every_part_without_faults(tmp_path: Path) -> None:
    kernels = probe(tmp_path, "ops")
    told = [f"{k['op']} {k['call']} {k['name']} sm_{k['capability']}: {k['faults']}" for k in kernels if k["faults"]]
    assert told == []
    # A kernel that an earlier op of the part compiled already is not told again.
    assert {k["capability"] for k in kernels} == set(gpus.TARGETS)
    assert {k["op"] for k in kernels} == {op.name for op in ops.ALL if aot.has_kernels(op)}


def test_products_run_on_tensor_cores(tmp_path: Path) -> None:
    instructions = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
    kinds = {"bf16": ["bf16"], "f16": ["f16"], "f32": ["f32:tf32x3"]}
    kernels = probe(tmp_path, "samples", ",".join(map(str, instructions)), ",".join(kinds))
    assert len(kernels) == len(instructions) * len(kinds)
    for kernel in kernels:
        assert kernel["dots"] == kinds[kernel["call"]]
        assert kernel["tensor_cores"] == instructions[kernel["capability"]]
        assert (kernel["faults"], kernel["spills"], kernel["was_cached"]) == ([], 0, False)
        assert kernel["blocks"] > 0 and 0 < kernel["occupancy"] <= 1 and kernel["size"] > 1000


def test_bad_kernels_are_told(tmp_path: Path) -> None:
    starved, greedy, plain = probe(tmp_path, "samples", "86", "starved,greedy,plain_cores")
    assert starved["spills"] > 0 and starved["registers"] <= 32
    assert any("local memory instructions" in fault for fault in starved["faults"])
    assert greedy["faults"] == [f"{greedy['shared']} bytes of shared memory, sm_86 has 101376"]
    assert greedy["blocks"] == 0
    assert plain["faults"] == ["no tensor core instruction for dots of f32:ieee"]


def test_what_was_compiled_is_found_by_a_second_process_and_by_ordinary_launches(tmp_path: Path) -> None:
    [first] = probe(tmp_path, "samples", "90", "bf16")
    [second] = probe(tmp_path, "samples", "90", "bf16")
    assert (first["was_cached"], second["was_cached"]) == (False, True)
    assert probe(tmp_path, "launch", "90", "bf16") == [{"key": first["key"], "was_cached": True}]
    # The part is in the key: another one compiles for itself.
    assert [kernel["was_cached"] for kernel in probe(tmp_path, "launch", "80", "bf16")] == [False]


@pytest.mark.parametrize("op", [op for op in ops.ALL if hasattr(aot.cases_of(op), "cost")], ids=lambda op: op.name)
def test_no_kernel_is_modelled_below_what_must_be_done(op: Op) -> None:
    module = aot.cases_of(op)
    for case in (*module.CASES, *aot.compile_cases(op)):
        least = module.cost(case)
        ours = module.kernel_cost(case) if hasattr(module, "kernel_cost") else least
        assert all(mine >= needed >= 0 for mine, needed in zip(ours, least, strict=False)), case


@pytest.mark.parametrize(
    ("capability", "registers", "warps", "shared", "blocks"),
    [
        (80, 128, 8, 64 << 10, 2),  # registers: 16 warps; shared: 164 / 65
        (80, 32, 4, 0, 16),  # warps
        (90, 100, 8, 96 << 10, 2),  # 104 registers are handed out, 4 warps to a scheduler
        (86, 40, 1, 1 << 10, 16),  # blocks
        (89, 255, 8, 99 << 10, 1),
        (120, 32, 4, 100 << 10, 0),  # more shared memory than a block may have
        (100, 255, 16, 0, 0),  # more registers than there are
    ],
)
def test_resident_blocks(capability: int, registers: int, warps: int, shared: int, blocks: int) -> None:
    assert gpus.resident_blocks(capability, registers=registers, warps=warps, shared=shared) == blocks
