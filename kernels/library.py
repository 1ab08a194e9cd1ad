"""The one torch.library of embedmux, and what an op is.

An op is a schema, a reference in plain torch and a fake; ``define`` registers all three. The reference answers on every
device until something faster is registered for it: C++ under ``CPU`` (csrc, when ``embedmux.kernels._C`` is loaded),
Triton under ``CUDA`` (``cuda.py`` beside the reference). Which kernel answers is torch's dispatcher's choice alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NAMESPACE = "embedmux"
LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(frozen=True, slots=True)
class Op:
    """One registered op: its name, its reference, and how to call it through the dispatcher."""

    name: str
    reference: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of whichever kernel torch's dispatcher picks for the arguments' device."""
        return self.handle(*args, **kwargs)

    @property
    def handle(self) -> Any:
        """The overload to keep where the call is hot."""
        return getattr(torch.ops.embedmux, self.name).default

    def backend(self, device: str) -> str:
        """``csrc``, ``triton`` or ``reference``: what answers on ``device`` ("cpu" or "cuda")."""
        key = DISPATCH_KEYS[device]
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", key):
            return "reference"
        return {"cpu": "csrc", "cuda": "triton"}[device]


def define(name: str, signature: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Op:
    """Registers an op and returns it; ``signature`` is the schema without the name, as ``(Tensor x) -> Tensor``."""
    LIBRARY.define(name + signature)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return Op(name, reference)
