"""Front processes beside the first one, so that reading texts and gRPC scale past one interpreter.

Each listens on the same port (SO_REUSEPORT: the kernel deals connections out), and has a connection to the engine, and
memory, of its own. Started as ``python -m embedmux.server.beside ADDRESS ENGINE_SOCKET BOARD CONTROL CONFIG``. Over the
control socket the first front says ``stop`` with the seconds to drain, and hears once a second what was counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedmux.server import logs
from embedmux.server.bridge.board import BOARD_BYTES, Board
from embedmux.server.bridge.linked import Linked, memory_file
from embedmux.server.config import ServeConfig
from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import ServerState
from embedmux.server.front import Front
from embedmux.server.metrics.counters import merged

logger = logging.getLogger(__name__)
REPORT_S = 1.0
RECONNECT_S = 0.1
RESTART_S = 0.5
STOP_MARGIN_S = 5.0
MOST_REPORT_BYTES = 64 << 20


@dataclass(slots=True)
class _Process:
    """One front process, its control socket and what it reported last."""

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Beside:
    """The fronts beside the first, as the first keeps them: started, replaced when one ends, stopped."""

    def __init__(self, config: ServeConfig, address: str, engine_socket: Path, board_file: int) -> None:
        self.reports: dict[int, dict[str, Any]] = {}  # by place: what each counted, as it said last
        self._arguments = (address, str(engine_socket), str(board_file))
        self._config = config
        self._board_file = board_file
        self._running: dict[int, _Process] = {}
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts ``frontends`` - 1 of them."""
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(1, self._config.frontends)]

    async def stop(self, grace_s: float) -> None:
        """Drains and ends them all; kills what takes much longer than that."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for running in self._running.values():
            with contextlib.suppress(OSError):
                running.writer.write(json.dumps({"stop": grace_s}).encode() + b"\n")
        ends = [asyncio.to_thread(_end, running.process, grace_s + STOP_MARGIN_S) for running in self._running.values()]
        await asyncio.gather(*ends)
        for running in self._running.values():
            running.writer.close()

    async def _keep(self, place: int) -> None:
        while True:
            running = self._running[place] = await self._launch()
            # What those counted that stood here before stays counted, but no call of theirs is in flight any more.
            ended = {**self.reports.get(place, {}), "in_flight": []}
            try:
                while line := await running.reader.readline():
                    self.reports[place] = merged([ended, json.loads(line)])
            except ValueError:  # no report, or one without an end
                logger.exception("front process %d reports what cannot be read", place)
                running.process.kill()
            code = await asyncio.to_thread(running.process.wait)
            logger.error("front process %d ended with exit code %s; starting it again", place, code)
            await asyncio.sleep(RESTART_S)

    async def _launch(self) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "embedmux.server.beside", *self._arguments, str(theirs.fileno()),
                 self._config.to_json()],
                pass_fds=(self._board_file, theirs.fileno()),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return _Process(process, *await asyncio.open_connection(sock=ours, limit=MOST_REPORT_BYTES))


def refuse_taken(address: str) -> None:
    """Raises OSError where somebody listens already: a port that may be shared would be shared with any server."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise OSError(
                f"address {address!r} cannot be bound ({error.strerror}); choose another one or free it"
            ) from error


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def run(config: ServeConfig, address: str, engine_socket: str, board: Board, control: socket.socket) -> None:
    """Serves until the first front says stop, or is gone."""
    linked = Linked(board)
    front = Front(config, linked)
    server = front.listen(address)
    reader, writer = await asyncio.open_connection(sock=control)
    await server.start()
    linking = asyncio.create_task(_stay_linked(linked, front, engine_socket, config.shared_memory_bytes))
    reporting = asyncio.create_task(_report(front, writer))
    said = await reader.readline()
    if not said:
        os._exit(1)  # the first front is gone, and the engine with it
    for task in (reporting, linking):
        task.cancel()
    await server.stop(json.loads(said)["stop"])
    front.close()


async def _stay_linked(linked: Linked, front: Front, engine_socket: str, memory_bytes: int) -> None:
    """Connects to the engine, again whenever it was replaced."""
    while True:
        file = memory_file(memory_bytes)
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(engine_socket)
            socket.send_fds(connection, [b"\0"], [file])
            linked.link = await linked.connect(connection, mmap.mmap(file, memory_bytes))
        except (OSError, EmbedmuxError) as error:
            logger.debug("no engine yet: %s", error)
            await asyncio.sleep(RECONNECT_S)
            continue
        finally:
            os.close(file)
        front.lifecycle.set(ServerState.SERVING)
        await asyncio.shield(linked.link.lost)
        front.lifecycle.set(ServerState.RESTARTING)


async def _report(front: Front, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(json.dumps(front.counted()).encode() + b"\n")
        await writer.drain()
        await asyncio.sleep(REPORT_S)


def main() -> None:
    """One front process."""
    address, engine_socket, board_file, control = sys.argv[1:5]
    config = ServeConfig.from_json(sys.argv[5])
    logs.configure("front", config.engine.log_format, shows_pid=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends these to the whole group; the first front decides
        signal.signal(number, signal.SIG_IGN)
    board = Board(mmap.mmap(int(board_file), BOARD_BYTES))
    asyncio.run(run(config, address, engine_socket, board, socket.socket(fileno=int(control))))


if __name__ == "__main__":
    main()
