"""Triton's interpreter, chosen before anything imports Triton: its own library decides what it is at its import."""

import importlib.util
import os
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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
