"""Keeps one engine process running: starts it, watches it, restarts it, drains it. Never imports torch."""

import asyncio
import contextlib
import logging
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

from embedmux.server.bridge.link import EngineLink, adapter_info
from embedmux.server.bridge.port import Answer
from embedmux.server.config import EngineConfig
from embedmux.server.errors import AdapterRejected, EmbedmuxError, Overloaded, Unavailable
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import OutputSpec, Terms, Tokens

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
HEALTHY_AFTER_S = 30.0  # an engine that ran this long starts the pauses afresh


class Supervisor:
    """The engine as the rest of the front sees it, across restarts of its process.

    ``on_change(is_serving)`` is called on the event loop whenever the engine becomes ready or is lost.
    """

    def __init__(
        self, config: EngineConfig, *, shared_memory_bytes: int, on_change: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._config = config
        self._memory_bytes = shared_memory_bytes
        self._on_change = on_change
        self._link: EngineLink | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False
        # (place of the model, adapter id) -> (path below the model's root, digest, placement)
        self._in_service: dict[tuple[int, str], tuple[str, str, str]] = {}

    async def start(self) -> None:
        """Starts the engine and waits until it is ready; raises its error if the model cannot be served."""
        self._link = await self._launch(self._config)
        self._in_service = {
            (model, info.id): (info.id, info.digest, info.placement)
            for model, adapters in enumerate(self._link.adapters)
            for info in adapters.values()
        }
        self._watcher = asyncio.create_task(self._watch(), name="embedmux-supervisor")
        self._on_change(True)

    @property
    def models(self) -> list[ModelInfo]:
        """Facts of the loaded models."""
        return self._ready_link().models

    def adapters_of(self, model: int) -> dict[str, AdapterInfo]:
        """A model's adapters in service by id; a new dict after every change."""
        return self._ready_link().adapters[model]

    async def embed(
        self, model: int, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> Answer:
        """See EngineLink.embed."""
        return await self._ready_link().embed(model, tokens, adapters, output, terms)

    async def load_adapter(
        self, model: int, path: str, adapter_id: str | None, placement: str | None = None
    ) -> AdapterInfo:
        """Loads an adapter folder below a model's root; it stays loaded over restarts of the engine process."""
        # Shielded: what the engine has done must be known here, even if the caller does not wait for it.
        return await asyncio.shield(asyncio.ensure_future(self._load(model, path, adapter_id, placement)))

    async def unload_adapter(self, model: int, adapter_id: str) -> None:
        """Takes an adapter out of service."""
        await asyncio.shield(asyncio.ensure_future(self._unload(model, adapter_id)))

    async def _load(self, model: int, path: str, adapter_id: str | None, placement: str | None) -> AdapterInfo:
        link = self._ready_link()
        wanted = {"model": model, "path": path, "adapter_id": adapter_id, "placement": placement}
        info = adapter_info(await link.call("load_adapter", **wanted))
        link.adapters[model] = {**link.adapters[model], info.id: info}
        self._in_service[model, info.id] = (path, info.digest, info.placement)
        return info

    async def _unload(self, model: int, adapter_id: str) -> None:
        link = self._ready_link()
        await link.call("unload_adapter", model=model, adapter_id=adapter_id)
        link.adapters[model] = {name: info for name, info in link.adapters[model].items() if name != adapter_id}
        self._in_service.pop((model, adapter_id), None)

    async def close(self, timeout_s: float) -> bool:
        """Lets the engine answer what it holds, then ends it; kills it after ``timeout_s``. True if it ended itself."""
        self._closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        ended = False
        if self._link is not None and not self._link.lost.done():
            self._link.close()
            try:
                await asyncio.wait_for(asyncio.shield(self._link.lost), timeout_s)
                ended = True
            except TimeoutError:
                logger.warning("the engine did not drain within %.1f s; killing it", timeout_s)
        if self._process is not None:
            if not ended:  # it did not drain, or was still loading and holds nothing
                self._process.kill()
            await asyncio.to_thread(self._process.wait)
        return ended

    def _ready_link(self) -> EngineLink:
        if self._link is None:
            raise Unavailable("the models are being loaded; try again")
        if self._link.lost.done():
            raise Unavailable("the engine process is being restarted; try again")
        return self._link

    async def _watch(self) -> None:
        """Restarts the engine whenever it is lost, with growing pauses while it keeps failing."""
        pause_s, started = FIRST_PAUSE_S, time.monotonic()
        while not self._closing:
            assert self._link is not None and self._process is not None
            await asyncio.shield(self._link.lost)  # close cancels this task, and waits for the same future
            code = await asyncio.to_thread(self._process.wait)
            logger.error("the engine process ended with exit code %s; restarting it", code)
            self._on_change(False)
            if time.monotonic() - started > HEALTHY_AFTER_S:
                pause_s = FIRST_PAUSE_S
            while True:
                await asyncio.sleep(pause_s)
                pause_s, started = min(LONGEST_PAUSE_S, 2 * pause_s), time.monotonic()
                try:
                    link = await self._launch(replace(self._config, loads_adapters=False))
                    await self._restore(link)
                except (EmbedmuxError, OSError) as error:
                    logger.error("the engine process did not start: %s", error)
                    self._process.kill()
                    await asyncio.to_thread(self._process.wait)
                    continue
                break
            self._link = link
            self._on_change(True)

    async def _restore(self, link: EngineLink) -> None:
        """Brings a fresh engine's adapters to exactly what was in service before, or leaves one out and says so."""
        for (model, adapter_id), (path, digest, placement) in list(self._in_service.items()):
            try:
                wanted = {"model": model, "path": path, "adapter_id": adapter_id, "placement": placement}
                info = adapter_info(await link.call("load_adapter", **wanted))
                if info.digest != digest:
                    await link.call("unload_adapter", model=model, adapter_id=adapter_id)
                    raise AdapterRejected(f"its folder now holds other weights ({info.digest[:12]}, not {digest[:12]})")
                link.adapters[model][info.id] = info
            except (AdapterRejected, Overloaded) as error:
                del self._in_service[model, adapter_id]
                logger.error("adapter %r is out of service since the restart: %s", adapter_id, error)

    async def _launch(self, config: EngineConfig) -> EngineLink:
        """A new engine process, ready; its socket and its memory die with it."""
        front, back = socket.socketpair()
        memory_file = _memory_file(self._memory_bytes)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedmux.server.bridge.child",
                 str(back.fileno()), str(memory_file), config.to_json()],
                pass_fds=(back.fileno(), memory_file),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            memory = mmap.mmap(memory_file, self._memory_bytes)
        finally:
            back.close()
            os.close(memory_file)
        _, link = await asyncio.get_running_loop().create_connection(lambda: EngineLink(memory), sock=front)
        await asyncio.shield(link.ready)
        return link


def _memory_file(size: int) -> int:
    """A file descriptor of anonymous memory; pages are taken only when they are used."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("embedmux")
    else:  # no memfd on this system: an unlinked file does the same
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
