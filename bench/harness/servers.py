"""Servers for a benchmark: started as a user would start them, stopped when the benchmark is done with them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from embedmux.client.blocking import Client

START_S = 120
ENGINE = "embedmux.server.bridge.child"


@dataclass(frozen=True, slots=True)
class Server:
    """A running ``embedmux serve``: where it answers, where its metrics are, its first process."""

    address: str
    metrics: str
    process: subprocess.Popen[bytes]

    def engine(self) -> psutil.Process | None:
        """The engine's process; None while there is none."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if ENGINE in child.cmdline():
                    return child
        return None

    def resident_bytes(self) -> int:
        """Of all its processes; what they share counts once for each."""
        first = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [first, *first.children(recursive=True)])


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The address of an ``embedmux serve`` with these arguments, once it serves."""
    with running(*arguments) as server:
        yield server.address


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Server]:
    """The same, with its metrics and its process."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, metrics_file, log = (Path(folder) / name for name in ("port", "metrics", "log"))
        command = [
            sys.executable, "-m", "embedmux.server.cli", "serve", "--address", "127.0.0.1:0",
            "--port-file", str(port_file), "--metrics-address", "127.0.0.1:0", "--metrics-port-file", str(metrics_file),
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *arguments], stdout=output, stderr=output)
            try:
                address, metrics = (f"127.0.0.1:{_wait_for(file, process, log)}" for file in (port_file, metrics_file))
                with Client(address) as client:
                    client.wait_until_serving(timeout=START_S)
                yield Server(address, metrics, process)
            finally:
                process.terminate()
                process.wait(60)


def _wait_for(file: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    for _ in range(100 * START_S):
        if file.exists() and (text := file.read_text().strip()):
            return int(text)
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"the server ended while starting:\n{log.read_text()}")
    raise RuntimeError(f"the server bound no port within {START_S} s:\n{log.read_text()}")
