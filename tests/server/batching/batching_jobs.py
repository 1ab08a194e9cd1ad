"""Jobs without texts, and a scheduler whose costs are known: 1 ms a token, nothing a batch."""

import numpy as np

from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.records import Encoding, EngineJob, OutputSpec, Priority, Sequence, Terms


def make_job(
    lengths: list[int],
    *,
    now: float = 0.0,
    deadline: float | None = None,
    model: int = 0,
    tenant: str = "",
    priority: Priority = Priority.INTERACTIVE,
) -> list[Sequence]:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    none = np.zeros(len(lengths), np.int32)
    job = EngineJob(
        1, np.zeros(sum(lengths), np.int32), offsets, np.full(len(lengths), -1, np.int32),
        OutputSpec(8, Encoding.FLOAT32), Terms(deadline, tenant, priority), memoryview(bytearray(1)), none, none, model,
    )  # fmt: skip
    return [Sequence(job, i, length, -1, now) for i, length in enumerate(lengths)]


def make_scheduler(**options: object) -> Scheduler:
    limits = {"max_batch_tokens": 100, "max_batch_texts": 8, "max_queue_tokens": 1000, **options}
    scheduler = Scheduler(**limits)  # type: ignore[arg-type]
    for model in range(3):
        for _ in range(4):
            scheduler.costs[model].observe(100, 1000, 0.1)
    return scheduler


def add(scheduler: Scheduler, sequences: list[Sequence], now: float | None = None) -> list[Sequence]:
    scheduler.add(sequences, sequences[0].enqueued if now is None else now)
    return sequences
