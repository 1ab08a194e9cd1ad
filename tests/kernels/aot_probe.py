"""Run by test_aot.py in a process of its own, without TRITON_INTERPRET; prints one JSON list.

aot_probe.py ops                      for every target one case of every op, each target another one
aot_probe.py samples TARGETS NAMES    kernels of aot_samples, by name; lists with commas
aot_probe.py launch TARGET NAMES      ordinary launches of them on a GPU that is not there: key and was_cached
"""

import json
import sys
from dataclasses import asdict
from typing import Any

import aot_samples
import torch
import triton
from triton.runtime import driver

from embedmux.kernels import aot, gpus, launch


class Gpu(launch._Target):
    """A device as Triton's launch path sees it: it loads any binary and runs none."""

    def __init__(self, capability: int) -> None:
        super().__init__(capability)
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: None

    def load_binary(self, *_: Any) -> tuple[object, ...]:
        return object(), object(), 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": gpus.LIMITS[self.capability].shared_per_block}


def launched(target: int, calls: list[aot.Call]) -> list[dict[str, object]]:
    found = []

    def listen(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        found.append({"key": metadata["hash"], "was_cached": cache_hit})

    triton.knobs.compilation.listener = listen
    driver.set_active(Gpu(target))
    for call in calls:
        # Fresh tensors begin on a boundary of 64 bytes, as torch's begin on one of 512 on a GPU.
        call.op.triton(
            *(torch.empty_like(a, device="cpu") if isinstance(a, torch.Tensor) else a for a in call.arguments)
        )
    return found


def rotated() -> list[aot.Kernel]:
    """All cases for all targets would take minutes; every target takes another case of each op."""
    calls: dict[str, list[aot.Call]] = {}
    for call in aot.case_calls():
        calls.setdefault(call.op.name, []).append(call)
    return [
        kernel
        for turn, target in enumerate(gpus.TARGETS)
        for kernel in aot.compile_calls([found[turn % len(found)] for found in calls.values()], [target])
    ]


def main(what: str, targets: str = "", names: str = "") -> None:
    samples = aot_samples.samples()
    calls = [samples[name] for name in names.split(",") if name]
    if what == "launch":
        print(json.dumps(launched(int(targets), calls)))
        return
    kernels = rotated() if what == "ops" else aot.compile_calls(calls, [int(target) for target in targets.split(",")])
    print(json.dumps([{**asdict(kernel), "faults": kernel.faults} for kernel in kernels]))


if __name__ == "__main__":
    main(*sys.argv[1:])
