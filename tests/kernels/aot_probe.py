"""Run by test_aot.py in a process of its own, without TRITON_INTERPRET; prints one JSON list.

aot_probe.py ops LIMIT              every op's kernels for every target, at most LIMIT cases an op
aot_probe.py samples TARGET NAME.. kernels of aot_samples, by name
aot_probe.py launch TARGET NAME..  ordinary launches of these samples on a GPU that is not there: key and was_cached
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


def main(what: str, *words: str) -> None:
    if what == "ops":
        kernels = aot.compile_calls(aot.case_calls(limit=int(words[0])), aot.gpus.TARGETS)
    else:
        samples = aot_samples.samples()
        target, calls = int(words[0]), [samples[name] for name in words[1:]]
        if what == "launch":
            print(json.dumps(launched(target, calls)))
            return
        kernels = aot.compile_calls(calls, [target])
    print(json.dumps([{**asdict(kernel), "faults": kernel.faults} for kernel in kernels]))


if __name__ == "__main__":
    main(*sys.argv[1:])
