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
from pathlib import Path

from embedmux.server.bridge.board import BOARD_BYTES, Board
from embedmux.server.bridge.link import EngineLink, adapter_info
from embedmux.server.bridge.linked import Linked, memory_file
from embedmux.server.config import EngineConfig
from embedmux.server.errors import AdapterRejected, EmbedmuxError, Overloaded

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
HEALTHY_AFTER_S = 30.0  # an engine that ran this long starts the pauses afresh
LOOK_S = 0.5
LOADING_S = 30.0


class Supervisor(Linked):
    """The engine as the first front sees it, and its life.

    ``on_change(is_serving)`` is called on the event loop whenever the engine becomes ready or is lost. An engine that
    gives no sign of life for ``stuck_after_s`` seconds, or computes one batch for so long, is killed and replaced.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        shared_memory_bytes: int,
        stuck_after_s: float = 60.0,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.board_file = memory_file(BOARD_BYTES)
        super().__init__(Board(mmap.mmap(self.board_file, BOARD_BYTES)))
        self.num_restarts = 0
        self._config = config
        self._memory_bytes = shared_memory_bytes
        self._stuck_after_s = stuck_after_s
        self._on_change = on_change
        self._folder = tempfile.TemporaryDirectory(prefix="embedmux-")
        self.socket_path = Path(self._folder.name) / "engine"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket_path))
        self._listener.listen()
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Starts the engine and waits until it is ready; raises its error if the model cannot be served."""
        self.link = await self._launch(self._config)
        self.link.open()
        self._tasks = [
            asyncio.create_task(self._watch(), name="embedmux-supervisor"),
            asyncio.create_task(self._look(), name="embedmux-watchdog"),
        ]
        self._on_change(True)

    async def close(self, timeout_s: float) -> bool:
        """Lets the engine answer what it holds, then ends it; kills it after ``timeout_s``. True if it ended itself."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        ended = False
        if self.link is not None and not self.link.lost.done():
            self.link.close()
            try:
                await asyncio.wait_for(asyncio.shield(self.link.lost), timeout_s)
                ended = True
            except TimeoutError:
                logger.warning("the engine did not drain within %.1f s; killing it", timeout_s)
        if self._process is not None:
            if not ended:  # it did not drain, or was still loading and holds nothing
                self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._listener.close()
        self._folder.cleanup()
        return ended

    async def _watch(self) -> None:
        """Restarts the engine whenever it is lost, with growing pauses while it keeps failing."""
        pause_s, started = FIRST_PAUSE_S, time.monotonic()
        while not self._closing:
            assert self.link is not None and self._process is not None
            lost = self.link
            await asyncio.shield(lost.lost)  # close cancels this task, and waits for the same future
            self._process.kill()  # one that closed its socket and goes on would keep the memory
            code = await asyncio.to_thread(self._process.wait)
            logger.error("the engine process ended with exit code %s; restarting it", code)
            self.num_restarts += 1
            self._on_change(False)
            if time.monotonic() - started > HEALTHY_AFTER_S:
                pause_s = FIRST_PAUSE_S
            while True:
                await asyncio.sleep(pause_s)
                pause_s, started = min(LONGEST_PAUSE_S, 2 * pause_s), time.monotonic()
                try:
                    link = await self._launch(replace(self._config, loads_adapters=False))
                    await self._restore(link, lost)
                except (EmbedmuxError, OSError) as error:
                    logger.error("the engine process did not start: %s", error)
                    self._process.kill()
                    await asyncio.to_thread(self._process.wait)
                    continue
                break
            self.link = link
            link.open()
            logger.info("the engine process serves again after %.1f s", time.monotonic() - started)
            self._on_change(True)

    async def _look(self) -> None:
        """Kills an engine that is stuck; all else follows from that."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._process is None or self._process.returncode is not None:
                continue
            now, moves = time.monotonic(), self.board.moves
            silent, busy = now - moves.heartbeat, now - moves.began if moves.began else 0.0
            is_loading = self.link is None or self.link.lost.done()
            # Before it can say anything, a process that loads reads its libraries, which takes seconds.
            limit = max(self._stuck_after_s, LOADING_S) if is_loading else self._stuck_after_s
            if max(silent, busy) > limit:
                what = f"computes one batch since {busy:.1f} s" if busy > silent else f"is silent since {silent:.1f} s"
                logger.error("the engine process %s, the limit is %.1f s (stuck_after_s)", what, limit)
                self._process.kill()
                self.board.clear()

    async def _restore(self, link: EngineLink, lost: EngineLink) -> None:
        """Brings a fresh engine's adapters to exactly what was in service before, or leaves one out and says so."""
        for model, adapters in enumerate(lost.adapters):
            for before in adapters.values():
                try:
                    wanted = {"path": before.path, "adapter_id": before.id, "placement": before.placement}
                    info = adapter_info(await link.call("load_adapter", model=model, **wanted))
                    if info.digest != before.digest:
                        await link.call("unload_adapter", model=model, adapter_id=before.id)
                        digests = f"{info.digest[:12]}, not {before.digest[:12]}"
                        raise AdapterRejected(f"its folder now holds other weights ({digests})")
                except (AdapterRejected, Overloaded) as error:
                    logger.error("adapter %r is out of service since the restart: %s", before.id, error)

    async def _launch(self, config: EngineConfig) -> EngineLink:
        """A new engine process, ready; its socket and its memory die with it."""
        front, back = socket.socketpair()
        memory = memory_file(self._memory_bytes)
        files = (back.fileno(), memory, self.board_file, self._listener.fileno())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedmux.server.bridge.child", *map(str, files), config.to_json()],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
            )
            mapped = mmap.mmap(memory, self._memory_bytes)
        finally:
            back.close()
            os.close(memory)
        self.board.clear()
        return await self.connect(front, mapped)
