"""Every Triton launch goes through ``launch``: it runs the kernel, or, inside ``compiling``, only compiles it.

Compiling calls the very launchers that serve, on meta tensors, under a driver that claims to be the target. So what is
compiled ahead of time has the parameters of production by construction, and Triton's cache finds it again by its key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

WARP_SIZE = 32
_compiled: list[Any] | None = None  # what `compiling` collects; None: run kernels


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``; an empty grid launches nothing.

    Multiply and add are fused, said here because Triton's default depends on its version and the environment, and so
    would bits and the key in its cache.
    """
    options.setdefault("enable_fp_fusion", True)
    if _compiled is not None:
        _compiled.append(kernel.warmup(*arguments, grid=grid, **options))
    elif all(grid):
        kernel[grid](*arguments, **options)


class _Target(DriverBase):  # type: ignore[misc]
    """A GPU that is not there: enough of a driver to compile for it."""

    def __init__(self, capability: int) -> None:
        super().__init__()
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Triton asks only when it builds a launcher, which needs a device."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """The part to compile for."""
        return GPUTarget("cuda", self.capability, WARP_SIZE)

    def get_current_device(self) -> int:
        """Triton keeps compiled kernels by device number, so every target needs its own."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where arguments live while compiling."""
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        """There is nothing to time."""
        raise NotImplementedError


@contextlib.contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Inside, ``launch`` compiles for ``capability`` (90 for sm_90) and the list fills with Triton's CompiledKernels.

    Needs no GPU, but a process in which TRITON_INTERPRET was not set when the kernels were imported.
    """
    global _compiled
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; use a process without it")
    active = driver._active  # not driver.active: asking for it looks for a GPU and fails where there is none
    driver.set_active(_Target(capability))
    _compiled = []
    try:
        yield _compiled
    finally:
        _compiled = None
        driver._active = active
