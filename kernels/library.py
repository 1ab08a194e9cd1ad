"""The one torch.library of embedmux, and what an op is.

An op is a schema, a reference in plain torch and a fake; ``define`` registers all three. The reference answers on every
device until something faster is registered for it: C++ under ``CPU`` (csrc, when ``embedmux.kernels._C`` is loaded),
Triton under ``CUDA`` (``cuda.py`` beside the reference, a function of the op's name with the op's arguments; imported
at its first call, since a server on the CPU has no use for Triton). Which kernel answers is torch's choice alone.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NAMESPACE = "embedmux"
LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class Op:
    """One registered op: its name, its reference, and how to call it through the dispatcher."""

    name: str
    reference: Callable[..., Any]
    has_triton: bool = False
    is_composed: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of whichever kernel torch's dispatcher picks for the arguments' device."""
        return self.handle(*args, **kwargs)

    @property
    def handle(self) -> Any:
        """The overload to keep where the call is hot."""
        return getattr(torch.ops.embedmux, self.name).default

    @functools.cached_property
    def triton(self) -> Callable[..., Any]:
        """The function that launches the Triton kernels, as ``reference`` is called; raises ImportError without Triton.

        Tests call it on CPU tensors, where TRITON_INTERPRET=1 runs it.
        """
        found: Callable[..., Any] = getattr(importlib.import_module(f"{self.reference.__module__}.cuda"), self.name)
        return lambda *arguments: found(*_readable(self.name, arguments))

    def backend(self, device: str) -> str:
        """``csrc``, ``triton``, ``ops`` or ``reference``: what answers on ``device`` ("cpu" or "cuda")."""
        key = DISPATCH_KEYS[device]
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", key):
            return "ops" if self.is_composed else "reference"
        return {"cpu": "csrc", "cuda": "triton"}[device]


def define(
    name: str,
    signature: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    has_triton: bool = False,
    is_composed: bool = False,
) -> Op:
    """Registers an op and returns it; ``signature`` is the schema without the name, as ``(Tensor x) -> Tensor``.

    ``has_triton``: cuda.py beside the contract has a function of this name. ``is_composed``: the reference calls other
    ops, so that it is as fast as these, and exact where they are.
    """
    LIBRARY.define(name + signature)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _checked(name, fake), lib=LIBRARY)
    op = Op(name, reference, has_triton, is_composed)
    if has_triton and importlib.util.find_spec("triton") is not None:
        LIBRARY.impl(name, lambda *arguments: op.triton(*arguments), "CUDA")
    return op


def _checked(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake, which torch also asks where CPU and meta tensors are mixed, and would then give fresh CPU memory."""

    @functools.wraps(fake)
    def checked(*arguments: Any, **named: Any) -> Any:
        _check_device(name, (*arguments, *named.values()))
        return fake(*arguments, **named)

    return checked


def _readable(name: str, arguments: tuple[Any, ...]) -> list[Any]:
    """What every Triton kernel may rely on: all tensors on one device, those of one dimension contiguous."""
    _check_device(name, arguments)
    return [a.contiguous() if isinstance(a, torch.Tensor) and a.dim() == 1 else a for a in arguments]


def _check_device(name: str, arguments: tuple[Any, ...]) -> None:
    listed = [
        each for argument in arguments for each in (argument if isinstance(argument, list | tuple) else [argument])
    ]
    devices = {str(each.device) for each in listed if isinstance(each, torch.Tensor)}
    if len(devices) > 1:
        raise ValueError(f"{name}: all tensors must be on one device, got {' and '.join(sorted(devices))}")
