"""``embedmux kernels``: the list, and compilation of a model's kernels into a cache."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedmux.kernels import ops

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compiled(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: other tests set TRITON_INTERPRET."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "embedmux.server.cli", "kernels", "compile", *words]
    return subprocess.run(command, env={**without, **environment}, capture_output=True, text=True)


def test_list_tells_every_op_and_the_instruction_set(run) -> None:
    listed = run("kernels", "list")
    assert listed.code == 0
    for op in ops.ALL:
        [line] = [line for line in listed.out.splitlines() if f"│ {op.name} " in line]
        assert [cell.strip() for cell in line.split("│")[2:4]] == [op.backend("cpu"), op.backend("cuda")]
    assert ops.cpu_isa() in listed.out


def test_compile_explains_itself_without_torch(run) -> None:
    explained = run("kernels", "compile", "--help").out
    assert "sm_90 (H100, H200)" in explained and "embedmux kernels compile --target all" in explained


@needs_triton
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--target", "sm_91"],
            "--target is 'sm_91'; it must be one of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120 or all",
        ),
        (["--target", "sm_90", "--dtype", "int4"], "--dtype is 'int4'; it must be float32 or bfloat16"),
    ],
    ids=["target", "dtype"],
)
def test_wrong_words_are_refused(run, words: list[str], message: str) -> None:
    refused = run("kernels", "compile", *words)
    assert refused.code == 2 and message in refused.err


@needs_triton
def test_interpreted_kernels_are_refused(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    refused = run("kernels", "compile", "--target", "sm_90")
    assert refused.code == 2 and "unset it" in refused.err


@needs_triton
@pytest.mark.slow
def test_a_model_compiles_once(tmp_path: Path) -> None:
    words = ("--target", "sm_90", "--model", "minilm", "--cache", str(tmp_path / "cache"))
    first, second = compiled(*words), compiled(*words)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert ", 0 found there" in first.stdout and "TRITON_CACHE_DIR=" in first.stdout
    assert ": 0 compiled, " in second.stdout


CODES = """
import torch
from embedmux.kernels import aot
from embedmux.server.heads.dense import encode_dense
from embedmux.server.outputs import encode_all_kinds
from embedmux.server.packed import TokenStates
from embedmux.server.records import Encoding, OutputSpec, Pooling

states = torch.empty(9, 384, dtype=torch.bfloat16, device="meta")
offsets = torch.empty(4, dtype=torch.int32, device="meta")
with aot.Recorder() as before:
    encode_all_kinds(TokenStates(states, offsets[:2]), Pooling.MEAN)
with aot.Recorder() as asked:
    for dimensions in (384, 256, 100):
        ranges = torch.empty(2, dimensions, device="meta")
        for encoding in Encoding:
            for chosen in (None, offsets[:2]):
                spec = OutputSpec(dimensions, encoding)
                encode_dense(TokenStates(states, offsets), chosen, spec, ranges, Pooling.MEAN)
compiled = {kernel.key for kernel in aot.compile_calls(before.calls, [90])}
later = {kernel.key for kernel in aot.compile_calls(asked.calls, [90])}
assert len(compiled) == 2 * len(Encoding) and later <= compiled, later - compiled
"""


@needs_triton
@pytest.mark.slow
def test_codes_of_any_dimensions_are_compiled_before_they_are_asked_for(tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, "-c", CODES],
        env={**without, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
