"""The same engine in this process: for library use, tests and in-process benchmarks."""

import asyncio
import itertools
import time

import numpy as np

from embedmux.server.bridge.port import Answer, ModelPort
from embedmux.server.config import EngineConfig
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import ANY_TERMS, EngineJob, OutputSpec, Terms, Tokens
from embedmux.server.runtime import Runtime


class LocalEngine:
    """All models of an engine without a process border; torch is loaded here."""

    def __init__(self, config: EngineConfig) -> None:
        self.runtime = Runtime(config)
        self._adapters: list[dict[str, AdapterInfo]] = [{} for _ in config.models]
        self._ids = itertools.count(1)
        for model in range(len(config.models)):
            self._refresh(model)

    @property
    def models(self) -> list[ModelInfo]:
        """Facts of the loaded models."""
        return [model.info for model in self.runtime.models]

    def adapters_of(self, model: int) -> dict[str, AdapterInfo]:
        """A model's adapters in service by id; a new dict after every change."""
        return self._adapters[model]

    def port(self, model: int = 0) -> ModelPort:
        """One of the models as if it were alone."""
        return ModelPort(self, model)

    def expect(self, num_characters: int, terms: Terms) -> None:
        """Refuses nothing: the queue itself is next."""

    async def embed(
        self, model: int, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms = ANY_TERMS
    ) -> Answer:
        """See EngineLink.embed."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        ids = [text.ids for text in tokens]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
        out = bytearray(output.total_bytes(len(tokens), int(offsets[-1])))
        job = EngineJob(
            id=next(self._ids),
            token_ids=np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=int(offsets[-1])),
            offsets=offsets,
            adapters=np.array(adapters, dtype=np.int32),
            output=output,
            terms=terms,
            out=memoryview(out),
            shared=np.array([text.shared for text in tokens], dtype=np.int32),
            second=np.array([text.second for text in tokens], dtype=np.int32),
            model=model,
        )

        def resolve() -> None:
            if not done.done():
                done.set_result(None)

        def finished(_: list[EngineJob]) -> None:
            loop.call_soon_threadsafe(resolve)

        submitted, notes = time.monotonic(), terms.notes
        if notes is not None:
            notes.num_tokens += len(job.token_ids)
        self.runtime.engine.submit(job, finished)
        try:
            await done
        except asyncio.CancelledError:
            self.runtime.engine.cancel(job)
            raise
        if notes is not None:
            notes.answered(submitted, job.began, time.monotonic())
        return bytes(out), job.errors

    async def load_adapter(
        self, model: int, path: str, adapter_id: str | None, placement: str | None = None
    ) -> AdapterInfo:
        """Loads an adapter folder below a model's root."""
        info = await asyncio.to_thread(self.runtime.load_adapter, model, path, adapter_id, placement)
        self._refresh(model)
        return info

    async def unload_adapter(self, model: int, adapter_id: str) -> None:
        """Takes an adapter out of service."""
        await asyncio.to_thread(self.runtime.unload_adapter, model, adapter_id)
        self._refresh(model)

    def close(self) -> None:
        """Answers what is queued and ends the engine's thread."""
        self.runtime.engine.close()

    def _refresh(self, model: int) -> None:
        self._adapters[model] = {info.id: info for info in self.runtime.models[model].registry.list()}
