"""``embedmux doctor``: what this installation can do, what is missing, and what to type."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.server.cli import console
from embedmux.server.cli.doctor_model import examine
from embedmux.server.cli.finding import Finding
from embedmux.server.errors import EmbedmuxError
from embedmux.server.models import default_adapters, find_model

NEEDED = ("grpcio", "protobuf", "numpy", "safetensors", "tokenizers")
EXTRAS = {"parquet": "pyarrow", "hub": "huggingface_hub", "train": "sentence_transformers"}
DEFAULT_MODEL = "minilm"
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_vpopcntdq", "amx_int8", "amx_bf16")
COMFORTABLE_BYTES = 2 << 30  # the default model, its adapters and the torch runtime take about half of this
BUILD = "pip install --no-build-isolation -e . (needs a C++ compiler)"


def doctor(model: str | None = None, *, server: str | None = None) -> int:
    """Look at this installation, or at one model, and at a server, and suggest fixes.

    The exit code is 1 if something is found that keeps embedmux from serving (or the server from answering).

    Examples:

        embedmux doctor

        embedmux doctor /models/bge-m3

        embedmux doctor --server localhost:50051

    Parameters
    ----------
    model
        A local directory, a packaged model or a hub id to look at alone: why it would be refused.
    server
        host:port or unix:PATH of a server to ask too.
    """
    findings = [*packages(), *machine(), *kernels(), *models()] if model is None else [*examine(model)]
    if server is not None:
        findings += list(running(server))
    table = Table("", "what", "found", header_style="bold")
    styles = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for finding in findings:
        detail = f"{finding.detail}\n-> {finding.fix}" if finding.fix else finding.detail
        table.add_row(
            finding.state, finding.name, detail, style=None if finding.state == "ok" else styles[finding.state]
        )
    screen = console.output()
    screen.print(table)
    faults = sum(finding.state == "fault" for finding in findings)
    screen.print(
        "no faults" if not faults else "1 fault" if faults == 1 else f"{faults} faults",
        style=styles["fault" if faults else "ok"],
    )
    return 1 if faults else 0


def packages() -> Iterator[Finding]:
    """Versions of what is needed, and which extras are there."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    versions = {name: version(name) for name in ("embedmux", *NEEDED)}
    missing = [name for name in NEEDED if versions[name] is None]
    shown = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    fix = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding("packages", "fault" if missing else "ok", shown, fix)
    absent = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    present = ", ".join(extra for extra in EXTRAS if extra not in absent) or "none"
    fix = f"if you need them: pip install 'embedmux[{','.join(absent)}]'" if absent else ""
    yield Finding("extras", "note" if absent else "ok", f"installed: {present}", fix)


def version(name: str) -> str | None:
    """A distribution's version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> Iterator[Finding]:
    """Cores, processor features and memory."""
    flags = cpu_flags()
    features = ", ".join(name for name in CPU_FEATURES if name in flags) or "none of the wide instruction sets"
    yield Finding("processor", "ok", f"{os.cpu_count()} cores, {platform.machine()}: {features}")
    free = available_bytes()
    if free is not None:
        is_tight = free < COMFORTABLE_BYTES
        fix = "a smaller --max-queue-tokens and fewer adapters help" if is_tight else ""
        yield Finding("memory", "note" if is_tight else "ok", f"{decimal(free)} free", fix)


def cpu_flags() -> set[str]:
    """What the kernel says the processor can do; empty where it does not say."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def available_bytes() -> int | None:
    """Memory that can be used without swapping; None where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def kernels() -> Iterator[Finding]:
    """torch, the compiled extension, and which kernel answers for each op."""
    try:
        torch = importlib.import_module("torch")
        ops: Any = importlib.import_module("embedmux.kernels.ops")
    except (ImportError, RuntimeError) as error:
        yield Finding("kernels", "fault", f"cannot be imported: {error}", f"install torch, then rebuild: {BUILD}")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        yield Finding("GPU", "ok", torch.cuda.get_device_name())
    if not ops.HAS_EXTENSION:
        fix = f"{BUILD}; without it `embedmux serve --allow-reference` serves slowly"
        yield Finding("compiled kernels", "fault", "the extension is not built", fix)
        return
    backends = ops.backends("cpu")
    slow = [name for name, backend in backends.items() if backend == "reference"]
    shown = f"{ops.cpu_isa()}: {', '.join(f'{name} {backend}' for name, backend in backends.items())}"
    yield Finding("compiled kernels", "fault" if slow else "ok", shown, f"rebuild: {BUILD}" if slow else "")


def models() -> Iterator[Finding]:
    """The default model and the adapters shipped for it."""
    try:
        folder = find_model(DEFAULT_MODEL)
    except EmbedmuxError as error:
        yield Finding("default model", "note", str(error), "or serve another: embedmux serve --model DIRECTORY")
        return
    yield Finding("default model", "ok", f"{DEFAULT_MODEL} in {folder}")
    adapters = default_adapters(DEFAULT_MODEL)
    names = sorted(path.parent.name for path in adapters.glob("*/adapter_config.json")) if adapters else []
    if names:
        yield Finding("adapters", "ok", f"for {DEFAULT_MODEL}: {', '.join(names)}")
    else:
        fix = "embedmux train makes adapters; embedmux serve --adapters DIRECTORY serves them"
        yield Finding("adapters", "note", f"none are shipped for {DEFAULT_MODEL}", fix)


def running(server: str) -> Iterator[Finding]:
    """A server's health, version and what it serves."""
    try:
        with Client(server, timeout=10) as client:
            is_serving, info = client.is_serving(), client.info()
    except EmbedmuxError as error:
        yield Finding("server", "fault", str(error))
        return
    served = ", ".join(f"{model.name} ({len(model.tasks)} tasks, {model.instruction_set})" for model in info.models)
    detail = f"version {info.version} at {server} is {info.state}: {served or 'no model'}"
    fix = "" if is_serving else "it may still be loading; its log says more"
    yield Finding("server", "ok" if is_serving else "fault", detail, fix)
    slow = sorted({op for model in info.models for op, backend in model.kernels.items() if backend == "reference"})
    if slow:
        yield Finding("server's kernels", "note", f"reference kernels answer for {', '.join(slow)}", BUILD)
