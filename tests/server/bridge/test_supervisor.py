"""The engine as the front sees it before there is one; restarts are in tests/end_to_end/test_restart.py."""

import pytest

from embedmux.server.bridge.supervisor import Supervisor
from embedmux.server.config import EngineConfig
from embedmux.server.errors import Unavailable


def test_until_the_models_are_loaded_it_says_so() -> None:
    with pytest.raises(Unavailable, match="the models are being loaded; try again"):
        Supervisor(EngineConfig(), shared_memory_bytes=4096).adapters_of(0)
