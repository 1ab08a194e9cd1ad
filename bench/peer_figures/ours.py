"""Our engine as a library's user has it: texts or token ids in, vectors out, in this process."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from embedmux.server.bridge.local import LocalEngine
from embedmux.server.bridge.supervisor import Supervisor
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.models import default_adapters, find_model
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Tokens, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

TASKS = ("retrieval", "text-matching", "classification", "clustering")
TEXTS_A_REQUEST = 64
BATCH_TOKENS = 8192
SHARED_BYTES = 1 << 28


class Ours:
    """One engine and its tokenizer; use it as a context manager. ``options`` are EngineConfig's.

    The engine is a process of its own, as in a server, or with ``is_local`` part of this one.
    """

    def __init__(
        self, source: str = "minilm", adapters: Path | None = None, *, is_local: bool = False, **options: Any
    ) -> None:
        model = ModelConfig(source, adapters if adapters is not None else default_adapters(source))
        config = EngineConfig((model,), **{"max_batch_tokens": BATCH_TOKENS, "max_queue_tokens": 1 << 26, **options})
        self.runner = asyncio.Runner()
        self.engine: LocalEngine | Supervisor
        if is_local:
            self.engine = LocalEngine(config)
        else:
            self.engine = Supervisor(config, shared_memory_bytes=SHARED_BYTES)
            self.runner.run(self.engine.start())
        folder = find_model(source)
        self.tokenizer = Tokenizer(folder, replace(read_contract(folder), max_tokens=512))
        self.output = OutputSpec(self.engine.models[0].dimensions, Encoding.FLOAT32)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.tokenizer.close()
        if isinstance(self.engine, LocalEngine):
            self.engine.close()
        else:
            self.runner.run(self.engine.close(10.0))
        self.runner.close()

    def handles(self, count: int, names: tuple[str, ...] = TASKS) -> list[int]:
        """Adapters in turn for so many texts."""
        handles = [self.engine.adapters_of(0)[name].handle for name in names]
        return list(itertools.islice(itertools.cycle(handles), count))

    def tokens(self, texts: list[str]) -> list[Tokens]:
        """The texts' tokens, cut to 512, without prompts."""
        found = self.tokenizer.encode_now([Frame("", text, "") for text in texts], Truncate.END)
        return [each for each in found if isinstance(each, Tokens)]

    def run(self, tokens: list[Tokens], handles: list[int] | None = None) -> np.ndarray:
        """[n, d] float32 of token ids, handed in at once."""
        return self.runner.run(self._run(tokens, handles or [BASE_MODEL] * len(tokens)))

    def run_in_requests(self, tokens: list[Tokens], size: int) -> None:
        """Token ids in requests of ``size`` texts, all in flight."""

        async def run() -> None:
            requests = [tokens[start : start + size] for start in range(0, len(tokens), size)]
            await asyncio.gather(*(self._run(request, [BASE_MODEL] * len(request)) for request in requests))

        self.runner.run(run())

    def embed(self, texts: list[str], handles: list[int] | None = None) -> np.ndarray:
        """[n, d] float32 of texts in requests of 64, all in flight: one is tokenised while others are computed."""
        return self.runner.run(self._embed(texts, handles or [BASE_MODEL] * len(texts)))

    async def one(self, text: str, handle: int) -> np.ndarray:
        """[1, d] float32 of one text."""
        return await self._request([text], [handle])

    async def _embed(self, texts: list[str], handles: list[int]) -> np.ndarray:
        starts = range(0, len(texts), TEXTS_A_REQUEST)
        requests = [self._request(texts[s : s + TEXTS_A_REQUEST], handles[s : s + TEXTS_A_REQUEST]) for s in starts]
        return np.concatenate(await asyncio.gather(*requests))

    async def _request(self, texts: list[str], handles: list[int]) -> np.ndarray:
        found = await self.tokenizer.encode([Frame("", text, "") for text in texts], Truncate.END)
        return await self._run([each for each in found if isinstance(each, Tokens)], handles)

    async def _run(self, tokens: list[Tokens], handles: list[int]) -> np.ndarray:
        rows, errors = await self.engine.embed(0, tokens, handles, self.output)
        assert not errors, errors
        return np.frombuffer(rows, "<f4").reshape(len(tokens), self.output.dimensions)
