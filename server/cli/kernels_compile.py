"""``embedmux kernels compile``: Triton's cache filled before the first request, on a machine that needs no GPU."""

import re
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from embedmux.kernels import aot, gpus, ops
from embedmux.server.backbones.dry_run import forward_calls
from embedmux.server.batching.graphs import bucket_shapes
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.cli import console
from embedmux.server.config import DTYPES, EngineConfig
from embedmux.server.models import find_model
from embedmux.server.outputs import encode_all_kinds

EVERY_TARGET = "all"
IN_BACKBONES = {"lora_matmul", "attention", "add_layer_norm", "pre_norm", "rope", "gated_activation"}
NAMES = [f"sm_{capability}" for capability in gpus.TARGETS]


def run(target: list[str], model: str | None, dtype: str, cache: Path | None) -> int:
    """``embedmux kernels compile``: its exit code."""
    targets = parse_targets(target)
    if dtype not in DTYPES:
        raise console.WrongUsage(f"--dtype is {dtype!r}; it must be {' or '.join(DTYPES)}")
    if aot.is_interpreting():
        raise console.WrongUsage("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    usual_cache = aot.cache_folder()
    if cache is not None:
        aot.use_cache(cache.resolve())
    calls = aot.case_calls() if model is None else model_calls(find_model(model), getattr(torch, dtype))
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("compiling", total=len(calls) * len(targets))
        kernels = aot.compile_calls(calls, targets, on_done=lambda: bar.advance(task))
    show(kernels, time.monotonic() - started)
    if aot.cache_folder() != usual_cache:
        found = f"the server finds them with TRITON_CACHE_DIR={aot.cache_folder()}"
        console.output().print(found, soft_wrap=True)
    return 1 if any(kernel.faults for kernel in kernels) else 0


def model_calls(folder: Path, dtype: torch.dtype) -> list[aot.Call]:
    """What the model's forward pass calls, and production shapes of what comes after it: pooling, codes, search."""
    engine = EngineConfig()
    buckets = bucket_shapes(engine.max_batch_tokens, engine.max_batch_texts, engine.max_adapters + 1)
    sizes = {(texts, segments): (tokens, texts, segments) for tokens, texts, segments in buckets}
    pooling = read_contract(folder).pooling
    calls: list[aot.Call] = forward_calls(
        folder, dtype, sizes.values(), lambda states: encode_all_kinds(states, pooling)
    )
    return calls + aot.case_calls(op for op in ops.ALL if op.name not in IN_BACKBONES)


def parse_targets(words: list[str]) -> list[int]:
    """sm_90 -> 90; every part for all."""
    if EVERY_TARGET in words:
        return list(gpus.TARGETS)
    for word in words:
        if word not in NAMES:
            raise console.WrongUsage(f"--target is {word!r}; it must be one of {', '.join(NAMES)} or {EVERY_TARGET}")
    return [int(re.sub(r"\D", "", word)) for word in dict.fromkeys(words)]


def show(kernels: list[aot.Kernel], seconds: float) -> None:
    """The table, the faults, and where the kernels are."""
    screen = console.output()
    table = Table("part", "op", "kernel", "registers", "shared", "occupancy", "tensor cores", "", header_style="bold")
    for kernel in kernels:
        table.add_row(
            f"sm_{kernel.capability}",
            kernel.op,
            f"{kernel.name} ({kernel.call})",
            str(kernel.registers),
            f"{kernel.shared / gpus.KIB:.0f} KiB",
            f"{kernel.occupancy:.0%}",
            kernel.tensor_cores.partition(".")[0] or "-",
            "found" if kernel.was_cached else "compiled",
            style="bold red" if kernel.faults else None,
        )
    screen.print(table)
    for kernel in kernels:
        for fault in kernel.faults:
            screen.print(f"sm_{kernel.capability} {kernel.op} {kernel.name} ({kernel.call}): {fault}", style="bold red")
    found = sum(kernel.was_cached for kernel in kernels)
    screen.print(
        f"{len(kernels)} kernels in {aot.cache_folder()}: {len(kernels) - found} compiled, {found} found there, "
        f"{seconds:.0f} s",
        soft_wrap=True,
    )


def progress_bar() -> Progress:
    """Calls done and time gone, on stderr; nothing when nobody looks."""
    target = console.messages()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=target, disable=not target.is_terminal, transient=True)
