"""The engine without a server, in a process of its own: texts in, vectors out, the front's own code for reading texts.

``python -m serving_figures.engine`` reads a JSON line for each run ({"texts", "seconds"}) and answers with texts/s.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

BENCH = Path(__file__).parents[1]
TEXTS_A_REQUEST, IN_FLIGHT = 32, 12


class EngineBeside:
    """That process; use it as a context manager."""

    def __enter__(self) -> EngineBeside:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving_figures.engine"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(BENCH)},
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def warm_up(self, texts: list[str]) -> None:
        """Runs once, uncounted."""
        self.rate(texts, 2.0)

    def rate(self, texts: list[str], seconds: float) -> float:
        """Texts a second, as requests of 32 of all tasks, 12 at a time."""
        return float(self._ask({"texts": texts, "seconds": seconds}))

    def full_batch_s(self, texts: list[str]) -> float:
        """Seconds of one batch of these texts, alone; the median of several runs."""
        return float(self._ask({"texts": texts, "seconds": None}))

    def _ask(self, request: dict[str, object]) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the engine's process ended with {self._process.wait()}")
        return line


def main() -> None:
    """Answers on standard output until standard input ends."""
    # Only this process loads torch.
    from embedmux.server.bridge.local import LocalEngine  # noqa: PLC0415
    from embedmux.server.config import EngineConfig, ModelConfig, ServeConfig  # noqa: PLC0415
    from embedmux.server.desk import conduct, open_models  # noqa: PLC0415
    from embedmux.server.models import default_adapters  # noqa: PLC0415
    from embedmux.server.records import Role  # noqa: PLC0415
    from embedmux.server.requests import EmbedJob, Instruction  # noqa: PLC0415
    from serving_figures.requests import INSTRUCTIONS  # noqa: PLC0415

    model = ModelConfig("minilm", adapters=default_adapters("minilm"))
    config = ServeConfig(engine=EngineConfig(models=(model,), dtype="bfloat16", coalesces=False))
    engine = LocalEngine(config.engine)
    models = conduct(open_models(config, engine), config.limits)
    tasks = tuple(Instruction(task=task, role=Role(role) if role else None) for task, role in INSTRUCTIONS)

    def job(texts: list[str]) -> EmbedJob:
        return EmbedJob(tuple(texts), tuple(tasks[at % len(tasks)] for at in range(len(texts))))

    async def run(texts: list[str], seconds: float) -> float:
        starts = iter(range(0, len(texts) - TEXTS_A_REQUEST, TEXTS_A_REQUEST))
        done, began = 0, time.monotonic()

        async def work() -> None:
            nonlocal done
            while time.monotonic() - began < seconds and (start := next(starts, None)) is not None:
                result = await models.embed(job(texts[start : start + TEXTS_A_REQUEST]))
                assert not result.errors
                done += TEXTS_A_REQUEST

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return done / (time.monotonic() - began)

    async def once(texts: list[str]) -> float:
        times = []
        for _ in range(9):
            began = time.monotonic()
            await models.embed(job(texts))
            times.append(time.monotonic() - began)
        return sorted(times)[len(times) // 2]

    for line in sys.stdin:
        asked = json.loads(line)
        seconds = asked["seconds"]
        print(asyncio.run(once(asked["texts"]) if seconds is None else run(asked["texts"], seconds)), flush=True)


if __name__ == "__main__":
    main()
