"""The same engine in this process: for library use, tests and in-process benchmarks."""

import asyncio
import itertools

import numpy as np

from embedmux.server.config import EngineConfig
from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import EngineJob, OutputSpec
from embedmux.server.runtime import Runtime


class LocalEngine:
    """An EnginePort without a process border; torch is loaded here."""

    def __init__(self, config: EngineConfig) -> None:
        self.runtime = Runtime(config)
        self.adapters: dict[str, AdapterInfo] = {}
        self._ids = itertools.count(1)
        self._refresh()

    @property
    def model(self) -> ModelInfo:
        """Facts of the loaded model."""
        return self.runtime.info

    async def embed(
        self, tokens: list[list[int]], adapters: list[int], output: OutputSpec, deadline: float | None
    ) -> tuple[bytes, dict[int, EmbedmuxError]]:
        """See EngineLink.embed."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
        out = bytearray(len(tokens) * output.encoding.row_bytes(output.dimensions))
        job = EngineJob(
            id=next(self._ids),
            token_ids=np.fromiter(itertools.chain.from_iterable(tokens), dtype=np.int32, count=int(offsets[-1])),
            offsets=offsets,
            adapters=np.array(adapters, dtype=np.int32),
            output=output,
            deadline=deadline,
            out=memoryview(out),
        )

        def resolve() -> None:
            if not done.done():
                done.set_result(None)

        def finished(_: EngineJob) -> None:
            loop.call_soon_threadsafe(resolve)

        self.runtime.engine.submit(job, finished)
        try:
            await done
        except asyncio.CancelledError:
            self.runtime.engine.cancel(job)
            raise
        return bytes(out), job.errors

    async def load_adapter(self, path: str, adapter_id: str | None) -> AdapterInfo:
        """Loads an adapter folder below the root."""
        info = await asyncio.to_thread(self.runtime.load_adapter, path, adapter_id)
        self._refresh()
        return info

    async def unload_adapter(self, adapter_id: str) -> None:
        """Takes an adapter out of service."""
        await asyncio.to_thread(self.runtime.registry.remove, adapter_id)
        self._refresh()

    def close(self) -> None:
        """Answers what is queued and ends the engine's thread."""
        self.runtime.engine.close()

    def _refresh(self) -> None:
        self.adapters = {info.id: info for info in self.runtime.registry.list()}
