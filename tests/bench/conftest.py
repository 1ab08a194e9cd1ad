"""bench/ is on the path while these tests are collected, as bench/run.py has it; and a server to make load on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BENCH = str(Path(__file__).parents[2] / "bench")
sys.path.insert(0, BENCH)


def pytest_collection_finish() -> None:
    """Other tests must not find what only benchmarks import."""
    if BENCH in sys.path:
        sys.path.remove(BENCH)


class Answering:
    """answering_server.py in a process: ``address``, and a line of ``next_call()`` for each call that it keeps."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("answering_server.py")), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = f"127.0.0.1:{int(self.next_call())}"

    def next_call(self) -> str:
        """Waits for it."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def kill(self) -> None:
        """At once, as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def answering(*options: str) -> Iterator[Answering]:
    server = Answering(*options)
    try:
        yield server
    finally:
        server.kill()
        assert server.process.stdout
        server.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Answering]:
    """Eight calls at once on a connection, windows of 64 KiB, messages of any size."""
    with answering("grpc.max_concurrent_streams=8", "grpc.http2.lookahead_bytes=65536") as found:
        yield found


@pytest.fixture
def own_server() -> Iterator[Answering]:
    """One to kill."""
    with answering() as found:
        yield found
