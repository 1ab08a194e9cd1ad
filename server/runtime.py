"""Every model of an engine on one device, behind one queue. Lives in the engine process."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from embedmux.kernels import ops
from embedmux.server.batching.cost import CostModel
from embedmux.server.batching.engine import Board, Engine
from embedmux.server.batching.repeats import Repeats
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.config import EngineConfig
from embedmux.server.errors import EngineFailure, ModelRejected
from embedmux.server.facts import AdapterInfo
from embedmux.server.loaded import LoadedModel
from embedmux.server.records import ANY_TERMS, BASE_MODEL, Encoding, EngineJob, OutputSpec, Sequence

FIRST_BATCHES, FIRST_LENGTH = (1, 8, 32), 16
LONGEST_TRIAL_S = 0.1
BUILDS = {"cpu": "build the extension (make install)", "cuda": "install Triton (pip install 'embedmux[cuda]')"}


class Runtime:
    """Loads the models, and runs the engine over them; one scheduler shares the device."""

    def __init__(self, config: EngineConfig, board: Board | None = None) -> None:
        _check_kernels(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.models = [LoadedModel(model, config) for model in config.models]
        ops.keep_freed_memory()
        scheduler = Scheduler(
            max_batch_tokens=config.max_batch_tokens,
            max_batch_texts=config.max_batch_texts,
            max_queue_tokens=config.max_queue_tokens,
            bulk_share=config.bulk_share,
            weights=config.tenants,
        )
        for place, model in enumerate(self.models):
            try_costs(scheduler.costs[place], model)
        self.engine = Engine(
            self._compute,
            self,
            scheduler,
            repeats=Repeats(is_coalescing=config.coalesces, cache_bytes=config.cache_bytes),
            board=board,
        )

    def facts(self) -> list[dict[str, Any]]:
        """Every model and its adapters in service, as a front is told them."""
        return [
            {"model": asdict(model.info), "adapters": self.adapters(place)} for place, model in enumerate(self.models)
        ]

    def adapters(self, model: int) -> list[dict[str, Any]]:
        """A model's adapters in service, as a front is told them."""
        return [asdict(info) for info in self.models[model].registry.list()]

    def snapshot(self) -> dict[str, Any]:
        """What was counted since the start and what is so now, for metrics; plain values by name.

        ``stats`` is Stats.as_dict; times are in seconds, sizes in bytes, ``cost`` is the model of a batch's seconds.
        """
        with self.engine.lock:  # the device thread changes it all
            return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        scheduler, repeats = self.engine.scheduler, self.engine.repeats
        models = []
        for place, model in enumerate(self.models):
            cost = scheduler.costs[place]
            a, b, c = cost.coefficients
            models.append(
                {
                    "name": model.name,
                    "cost": {"batch": a, "token": b, "square": c, "error": cost.error},
                    "adapters": model.registry.residency(),
                }
            )
        return {
            "stats": self.engine.stats.as_dict(),
            "models": models,
            "queue": {"tokens": scheduler.queued_tokens, "texts": len(scheduler), "max": scheduler.max_queue_tokens},
            "batch": {"max_tokens": scheduler.max_batch_tokens},
            "repeats": {
                "hits": repeats.num_hits,
                "misses": repeats.num_misses,
                "shared": repeats.num_shared,
                "used_bytes": repeats.used_bytes,
                "cache_bytes": repeats.cache_bytes,
            },
        }

    def load_adapter(self, model: int, path: str, adapter_id: str | None, placement: str | None = None) -> AdapterInfo:
        """Loads an adapter folder below a model's adapter root; raises AdapterRejected."""
        return self.models[model].load_adapter(path, adapter_id, placement)

    def unload_adapter(self, model: int, adapter_id: str) -> None:
        """Takes an adapter out of service; raises NotFound."""
        self.models[model].registry.remove(adapter_id)

    def lease(self, model: int, handle: int, count: int) -> int:
        """The slot of a model's adapter, pinned until as many leases are released; raises NotFound."""
        return self.models[model].registry.lease(handle, count)

    def release(self, model: int, handle: int, count: int) -> None:
        """Gives leases back."""
        self.models[model].registry.release(handle, count)

    def _compute(self, sequences: list[Sequence]) -> list[np.ndarray | EngineFailure]:
        """Sequences of one model in batch order -> one row of bytes, or its own error, each."""
        return self.models[sequences[0].job.model].compute(sequences)


def try_costs(costs: CostModel, model: LoadedModel) -> None:
    """Runs some batches, small ones first, so that the first request with a deadline is not judged by a guess."""
    contract, began = model.contract, time.monotonic()
    token_dimensions = contract.late.dimensions if contract.late is not None else 0
    for num_texts in FIRST_BATCHES:
        offsets = np.arange(num_texts + 1, dtype=np.int32) * FIRST_LENGTH
        none = np.zeros(num_texts, dtype=np.int32)
        output = OutputSpec(contract.dimensions, Encoding.FLOAT32, contract.outputs[:1], token_dimensions)
        job = EngineJob(
            id=0, token_ids=np.zeros(num_texts * FIRST_LENGTH, dtype=np.int32), offsets=offsets,
            adapters=none + BASE_MODEL, output=output, terms=ANY_TERMS, out=memoryview(b""), shared=none, second=none,
        )  # fmt: skip
        texts = [Sequence(job, index, FIRST_LENGTH, BASE_MODEL, began) for index in range(num_texts)]
        model.compute(texts)  # the first one also fills caches
        started = time.monotonic()
        model.compute(texts)
        now = time.monotonic()
        costs.observe(num_texts * FIRST_LENGTH, num_texts * FIRST_LENGTH**2, now - started)
        if now - began > LONGEST_TRIAL_S:
            return


def _check_kernels(config: EngineConfig) -> None:
    """Refuses to serve on a reference kernel, or on a device that is not there (law 3: nothing silent)."""
    if config.device == "cuda" and not torch.cuda.is_available():
        build = f"this torch ({torch.__version__}) is built for CUDA {torch.version.cuda}"
        reason = build if torch.version.cuda else f"this torch ({torch.__version__}) is built without CUDA"
        raise ModelRejected(f"device is 'cuda', but torch sees no CUDA device; {reason}; use --device cpu")
    slow = [name for name, backend in ops.backends(config.device).items() if backend == "reference"]
    if slow and not config.allow_reference:
        raise ModelRejected(
            f"no compiled kernel on {config.device} for {', '.join(slow)}; "
            f"{BUILDS[config.device]}, or accept slow reference kernels with --allow-reference"
        )
