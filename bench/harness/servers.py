"""Servers for a benchmark: started as a user would start them, stopped when the benchmark is done with them."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from embedmux.client.blocking import Client

START_S = 120


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The address of an ``embedmux serve`` with these arguments, once it serves."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        command = [sys.executable, "-m", "embedmux.server.cli", "serve", "--address", "127.0.0.1:0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port-file", str(port_file), *arguments], stdout=output, stderr=output
            )
            try:
                address = f"127.0.0.1:{_wait_for_port(process, port_file, log)}"
                with Client(address) as client:
                    client.wait_until_serving(timeout=START_S)
                yield address
            finally:
                process.terminate()
                process.wait(60)


def _wait_for_port(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    for _ in range(100 * START_S):
        if port_file.exists() and (text := port_file.read_text().strip()):
            return int(text)
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"the server ended while starting:\n{log.read_text()}")
    raise RuntimeError(f"the server bound no port within {START_S} s:\n{log.read_text()}")
