"""Ahead-of-time compilation of the Triton kernels, without a GPU: what each becomes, and Triton's cache filled.

A call of an op on meta tensors goes through the op's own launcher, so that the parameters are those of production, and
is compiled for a part by its compute capability. Triton keeps the result in its cache directory under the key of an
ordinary launch; a server on such a part, with the same versions of embedmux and Triton, compiles nothing.

Needs a process without TRITON_INTERPRET.
"""

import importlib
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from embedmux.kernels import gpus, ops
from embedmux.kernels.launch import compiling
from embedmux.kernels.library import NAMESPACE, Op

TENSOR_CORES = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")  # in PTX, the newest first
OPS = {op.name: op for op in ops.ALL}


@dataclass(frozen=True, slots=True)
class Call:
    """One call to compile: an op, a name for its shapes, and arguments whose tensors are on the meta device."""

    op: Op
    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel of a call. Registers are a thread's; stack, shared and size are bytes.

    ``spills`` counts the instructions that read or write local memory. ``blocks`` are resident on one multiprocessor,
    which they fill with ``occupancy`` of the warps it can hold. ``dots`` are the kinds of matrix products in the source
    ("bf16", "f16", "i8", "f32:tf32x3"), ``tensor_cores`` the instruction that computes them, or "". ``key`` names the
    kernel in Triton's cache; ``was_cached`` says that it stood there before.
    """

    op: str
    call: str
    name: str
    capability: int
    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    warps: int
    blocks: int
    occupancy: float
    dots: tuple[str, ...]
    tensor_cores: str
    size: int
    key: str
    was_cached: bool

    @property
    def faults(self) -> tuple[str, ...]:
        """What must not be in production: local memory, more shared memory than the part has, dots on plain cores."""
        limit = gpus.LIMITS[self.capability].shared_per_block
        found = {
            f"{self.spills} local memory instructions": self.spills > 0,
            f"{self.stack} bytes of stack": self.stack > 0,
            f"{self.shared} bytes of shared memory, sm_{self.capability} has {limit}": self.shared > limit,
            f"{self.tensor_memory} columns of tensor memory": self.tensor_memory > gpus.MAX_TENSOR_MEMORY,
            f"no tensor core instruction for dots of {', '.join(self.dots)}": bool(self.dots) and not self.tensor_cores,
        }
        return tuple(text for text, is_fault in found.items() if is_fault)


def is_interpreting() -> bool:
    """Whether TRITON_INTERPRET is set: nothing can be compiled then."""
    return bool(triton.knobs.runtime.interpret)


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels."""
    return Path(triton.knobs.cache.dir)


def use_cache(folder: Path) -> None:
    """From now on Triton keeps compiled kernels there, in this process."""
    triton.knobs.cache.dir = str(folder)


def has_kernels(op: Op) -> bool:
    """Whether the op has a Triton side."""
    return op.has_triton and importlib.util.find_spec(f"{op.reference.__module__}.cuda") is not None


def case_calls(wanted: Iterable[Op] = ops.ALL) -> list[Call]:
    """The calls of the ops' COMPILE_CASES (else BENCHMARK_CASES)."""
    return [
        Call(op, case.name, meta_inputs(op, case)) for op in wanted if has_kernels(op) for case in compile_cases(op)
    ]


def cases_of(op: Op) -> Any:
    """The module cases.py of an op."""
    return importlib.import_module(f"{op.reference.__module__}.cases")


def compile_cases(op: Op) -> Sequence[Any]:
    """The shapes of production."""
    module = cases_of(op)
    found: Sequence[Any] = getattr(module, "COMPILE_CASES", module.BENCHMARK_CASES)
    return found


def shapes_of(arguments: Sequence[Any]) -> str:
    """A name for a call: the shapes of its first two tensors of two dimensions or more."""
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor) and argument.dim() > 1]
    return " ".join("x".join(map(str, tensor.shape)) for tensor in tensors[:2])


def meta_inputs(op: Op, case: Any) -> tuple[Any, ...]:
    """The arguments of a case on the meta device; without the memory and the random values where that can be had."""
    make_inputs = cases_of(op).make_inputs
    try:
        with FakeTensorMode():
            arguments = make_inputs(case, seed=0)
    except (RuntimeError, TypeError, ValueError):  # it reads values
        arguments = make_inputs(case, seed=0)
    found: tuple[Any, ...] = to_meta(arguments)
    return found


def to_meta(value: Any) -> Any:
    """The same arguments with every tensor on the meta device."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, tuple | list):
        return type(value)(to_meta(item) for item in value)
    return value


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every call of an embedmux op is kept in ``calls``: run a model on meta tensors, compile what it calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Passes the call on."""
        name = func._schema.name.removeprefix(f"{NAMESPACE}::")
        if func.namespace == NAMESPACE and name in OPS and has_kernels(OPS[name]):
            self.calls.append(Call(OPS[name], shapes_of(args), to_meta(tuple(args))))
        return func(*args, **(kwargs or {}))


def compile_calls(
    calls: Sequence[Call], targets: Sequence[int], on_done: Callable[[], None] = lambda: None
) -> list[Kernel]:
    """Compiles every call for every target (90 for sm_90); ``on_done`` is called after each pair.

    Kernels that several calls share are told once a target, for the first of them.
    """
    found: dict[tuple[int, str], Kernel] = {}
    for target in targets:
        for call in calls:
            for kernel in compile_call(call, target):
                found.setdefault((target, kernel.key), kernel)
            on_done()
    return list(found.values())


def compile_call(call: Call, target: int) -> Iterator[Kernel]:
    """The kernels that one call launches on ``target``, in the order of their launches."""
    compiled_now: set[str] = set()

    def listen(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            compiled_now.add(metadata["hash"])

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = listen
    try:
        with compiling(target) as compiled:
            call.op.triton(*call.arguments)
    except Exception as error:
        error.add_note(f"while compiling {call.op.name} {call.name} for sm_{target}")
        raise
    finally:
        triton.knobs.compilation.listener = before
    for kernel in compiled:
        yield _describe(call, target, kernel, was_cached=kernel.hash not in compiled_now)


def _describe(call: Call, target: int, compiled: Any, *, was_cached: bool) -> Kernel:
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    usage = _resource_usage(compiled.asm["cubin"])
    threads = re.search(r"\.reqntid (\d+)", ptx)
    warps = int(threads[1]) // gpus.WARP_SIZE if threads else metadata.num_warps
    blocks = gpus.resident_blocks(target, registers=usage["REG"], warps=warps, shared=metadata.shared)
    touches_local = usage["STACK"] or usage["LOCAL"]
    return Kernel(
        op=call.op.name,
        call=call.name,
        name=metadata.name,
        capability=target,
        registers=usage["REG"],
        stack=usage["STACK"] + usage["LOCAL"],
        spills=len(re.findall(r"\b(?:LDL|STL)\b", _cuobjdump(compiled.asm["cubin"], "-sass"))) if touches_local else 0,
        shared=metadata.shared,
        tensor_memory=metadata.tmem_size or 0,
        warps=warps,
        blocks=blocks,
        occupancy=blocks * warps / gpus.LIMITS[target].warps,
        dots=_dots(compiled.asm["ttir"]),
        tensor_cores=next((name for name in TENSOR_CORES if name in ptx), ""),
        size=len(compiled.asm["cubin"]),
        key=compiled.hash,
        was_cached=was_cached,
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """What the assembler gave the kernel: REG, STACK, LOCAL and others."""
    text = _cuobjdump(cubin, "--dump-resource-usage").split("Function", 1)[1]
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text)}


def _cuobjdump(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _dots(ttir: str) -> tuple[str, ...]:
    """The kinds of ``tl.dot`` in a kernel's Triton IR; float32 with its precision, without which plain cores do it."""
    found = set()
    for precision, kind in re.findall(r"tt\.dot [^\n]*?(?:inputPrecision = (\w+) )?: tensor<[\dx]*x(\w+)>", ttir):
        found.add(f"f32:{precision or 'ieee'}" if kind == "f32" else kind)
    return tuple(sorted(found))
