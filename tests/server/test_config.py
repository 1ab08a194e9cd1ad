"""A setting that cannot work is refused before anything starts."""

import math
from pathlib import Path

import pytest

from embedmux.server.config import EngineConfig, Limits, ModelConfig, ServeConfig
from embedmux.server.errors import InvalidConfig


@pytest.mark.parametrize("threads", [0, -3, 100_000])
def test_threads_are_bounded(threads: int) -> None:
    with pytest.raises(InvalidConfig, match=f"threads is {threads}; it must be 1 to 1024"):
        EngineConfig(threads=threads)


@pytest.mark.parametrize("name", ["max_texts", "max_text_bytes", "max_message_bytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{name} is 0; it must be at least 1"):
        Limits(**{name: 0})


@pytest.mark.parametrize("drain_s", [-1.0, math.nan, math.inf])
def test_drain_is_a_time(drain_s: float) -> None:
    with pytest.raises(InvalidConfig, match="drain_s is"):
        ServeConfig(drain_s=drain_s)


def test_a_configuration_survives_the_process_border() -> None:
    models = (ModelConfig("minilm", Path("some/where")), ModelConfig("folder/of/weights", name="other"))
    config = EngineConfig(models, dtype="bfloat16", threads=3, loads_adapters=False)
    assert EngineConfig.from_json(config.to_json()) == config


def test_two_models_need_two_names() -> None:
    with pytest.raises(InvalidConfig, match="model 'minilm' is named twice"):
        EngineConfig((ModelConfig("minilm"), ModelConfig("other", name="minilm")))
