"""Which models ``embedmux serve`` is told to serve, with which adapters."""

from pathlib import Path

import pytest

from embedmux.server.cli import serve
from embedmux.server.cli.console import WrongUsage
from embedmux.server.cli.serve import served_models
from embedmux.server.config import ModelConfig, ServeConfig
from embedmux.server.models import default_adapters


def test_a_packaged_model_brings_its_adapters_unless_told_not_to() -> None:
    shipped = default_adapters("minilm")
    assert shipped is not None
    assert served_models(["minilm"], [], has_defaults=True) == (ModelConfig("minilm", shipped, "minilm"),)
    assert served_models(["minilm"], [], has_defaults=False) == (ModelConfig("minilm", None, "minilm"),)
    assert served_models(["minilm"], ["mine"], has_defaults=True) == (ModelConfig("minilm", Path("mine"), "minilm"),)


def test_several_models_have_names_and_adapters_of_their_own() -> None:
    models = served_models(["e5=models/e5", "judge=models/judge", "minilm"], ["e5=lora"], has_defaults=True)
    assert models == (
        ModelConfig("models/e5", Path("lora"), "e5"),
        ModelConfig("models/judge", None, "judge"),
        ModelConfig("minilm", default_adapters("minilm"), "minilm"),
    )
    assert served_models(["e5=models/e5"], ["lora"], has_defaults=True)[0].adapters == Path("lora")


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lr=3"
    folder.mkdir()
    (model,) = served_models([str(folder)], [], has_defaults=True)
    assert (model.source, model.name) == (str(folder), str(folder))


@pytest.mark.parametrize(
    ("models", "adapters", "message"),
    [
        (["a=x", "a=y"], [], "model 'a' is named twice"),
        (["a=x", "b=y"], ["lora"], "say for which model, NAME=lora with 'a' or 'b'"),
        (["a=x", "b=y"], ["c=lora"], "there is no model 'c', only 'a' or 'b'"),
        (["a=x"], ["lora", "a=other"], "model 'a' has 'lora' already"),
    ],
)
def test_what_fits_no_model_is_refused(models: list[str], adapters: list[str], message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        served_models(models, adapters, has_defaults=True)


def test_the_command_line_repeats_model_and_adapters(run, monkeypatch) -> None:
    configs: list[ServeConfig] = []

    class App:
        def __init__(self, config: ServeConfig) -> None:
            configs.append(config)

        async def run(self) -> None:
            pass

    monkeypatch.setattr(serve, "App", App)
    words = ["--model", "e5=x", "--model", "judge=y", "--adapters", "e5=lora", "--max-prefix-tokens", "9"]
    assert run("serve", *words).code == 0
    (config,) = configs
    assert config.engine.models == (ModelConfig("x", Path("lora"), "e5"), ModelConfig("y", None, "judge"))
    assert config.engine.max_prefix_tokens == 9
    wrong = run("serve", "--model", "a=x", "--model", "b=y", "--adapters", "lora")
    assert wrong.code == 2 and "say for which model" in wrong.err
