"""The fake server of the client tests, and the command line called in this process."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedmux.server.cli import main

# Test folders are no packages, so the fake is imported by its path.
PATH = Path(__file__).parents[2] / "client" / "fake_server.py"
SPEC = importlib.util.spec_from_file_location("fake_server", PATH)
fake_server = importlib.util.module_from_spec(SPEC)
sys.modules.setdefault("fake_server", fake_server)
SPEC.loader.exec_module(fake_server)


@dataclass(frozen=True)
class Run:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def fake() -> Iterator["fake_server.FakeServer"]:
    """The fake; ``fake.address`` is where it listens."""
    servicer, server, servicer.address = fake_server.start()
    yield servicer
    server.stop(grace=None).wait()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """``embedmux`` with the given words."""

    def call(*words: str) -> Run:
        code = main(words)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return call
