"""Fresh memory is NaN in every kernel test, and a test may walk the instruction sets of this machine."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Triton kernels run in its interpreter here; it must be chosen before their modules are imported.
os.environ["TRITON_INTERPRET"] = "1"

from embedmux.kernels import ops

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
HOST_LEVELS = LEVELS[: LEVELS.index(ops.cpu_isa()) + 1] if ops.HAS_EXTENSION else ("reference",)


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=HOST_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Caps the compiled kernels at one instruction set."""
    if ops.HAS_EXTENSION:
        torch.ops.embedmux.set_max_cpu_isa(request.param)
    yield request.param
    if ops.HAS_EXTENSION:
        torch.ops.embedmux.set_max_cpu_isa(LEVELS[-1])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of torch's threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def mend_bfloat16(interpreter: Any, bfloat16: Any, float32: Any) -> None:
    """Triton's interpreter (3.9) multiplies bfloat16's bits as integers, and cuts where the GPU rounds to nearest."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    create_dot, cast_impl = builder.create_dot, builder.cast_impl

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar == bfloat16:
            return handle((operand.data.astype("uint32") << 16).view("float32"), float32)
        return handle(operand.data.astype("float32"), float32) if operand.data.dtype == "float16" else operand

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *others)

    def cast(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (float32, bfloat16):
            return cast_impl(self, source, kind)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16)
        return handle(bits.numpy().reshape(source.data.shape), bfloat16)

    builder.create_dot, builder.cast_impl = dot, cast
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(builder, name, lambda self, source, kind: self.cast_impl(source, kind))


if importlib.util.find_spec("triton") is not None:
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    mend_bfloat16(interpreter, bfloat16, float32)
