"""A fresh fake server for a test, and its address."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test folders are no packages, so the fake is imported by its path.
SPEC = importlib.util.spec_from_file_location("fake_server", Path(__file__).with_name("fake_server.py"))
fake_server = importlib.util.module_from_spec(SPEC)
sys.modules["fake_server"] = fake_server
SPEC.loader.exec_module(fake_server)


@pytest.fixture
def fake() -> Iterator["fake_server.FakeServer"]:
    """The fake; ``fake.address`` is where it listens."""
    servicer, server, servicer.address = fake_server.start()
    yield servicer
    server.stop(grace=None).wait()
