"""Real servers with a real MiniLM and four random adapters; each starts once for all tests that share it."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from embedmux.client.blocking import Client
from embedmux.server.models import find_model


def load(name: str) -> ModuleType:
    """A module beside this file, importable by the tests from now on: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


support = load("end_to_end_support")
adapters = load("end_to_end_adapters")

Serve = Callable[..., AbstractContextManager["support.Served"]]


def dtypes() -> list[str]:
    """The precisions this processor can serve."""
    return ["float32", *(["bfloat16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])]


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """MiniLM as its package carries it."""
    return find_model("minilm")


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Adapters of four ranks; tests may add folders, below sub-folders of their own."""
    root = tmp_path_factory.mktemp("adapters")
    adapters.make_adapters(root, model_folder)
    return root


@pytest.fixture
def serve(tmp_path: Path, adapter_root: Path) -> Serve:
    """Starts a server of the test's own; arguments are those of ``embedmux serve``."""
    return partial(support.serving, tmp_path / "server", "--adapters", str(adapter_root))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, adapter_root: Path) -> Iterator["support.Served"]:
    """The shared float32 server. Tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("server")
    with support.serving(folder, "--adapters", str(adapter_root)) as served:
        yield served


@pytest.fixture(scope="session")
def bfloat16_server(tmp_path_factory: pytest.TempPathFactory, adapter_root: Path) -> Iterator["support.Served"]:
    """The shared bfloat16 server."""
    if "bfloat16" not in dtypes():
        pytest.skip("this processor has no fast bfloat16")
    folder = tmp_path_factory.mktemp("bfloat16-server")
    with support.serving(folder, "--adapters", str(adapter_root), "--dtype", "bfloat16") as served:
        yield served


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def each_server(request: pytest.FixtureRequest) -> "support.Served":
    """The shared servers, one after the other."""
    return request.getfixturevalue("server" if request.param == "float32" else "bfloat16_server")


@pytest.fixture
def client(server: "support.Served") -> Iterator[Client]:
    """A client of the shared float32 server."""
    with server.client() as opened:
        yield opened
