"""Broken and hostile adapters are refused over gRPC and leave no trace; good ones come and go under traffic."""

import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from end_to_end_adapters import RECIPES, SPARES
from end_to_end_support import Served, wait_for
from numpy.typing import NDArray

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.proto import adapters_pb2
from embedmux.server.backbones.targets import model_targets
from embedmux.server.errors import AdapterConflict, AdapterRejected, InvalidRequest, NotFound

HOSTILE = runpy.run_path(str(Path(__file__).parents[1] / "hostile" / "adapters.py"))
TEXTS = [Text("how do plants eat", task=task, role="query" if task else None) for task in (None, *RECIPES)]
ID = "hostile-one"


@pytest.fixture(scope="module")
def before(server: Served) -> NDArray[Any]:
    """The server's vectors before anything hostile came."""
    with server.client() as client:
        return client.embed(TEXTS).vectors


@pytest.fixture(scope="module")
def linears(model_folder: Path) -> dict[str, tuple[int, int]]:
    """MiniLM's linears, so that each hostile adapter has one defect only."""
    return model_targets(model_folder)


def test_every_hostile_adapter_is_refused_and_leaves_no_trace(
    server: Served, adapter_root: Path, linears: dict[str, tuple[int, int]], before: NDArray[Any]
) -> None:
    stubs = server.stubs()
    wrong = {}
    with server.client() as client:
        for case in HOSTILE["HOSTILE"]:
            folder = adapter_root / "hostile" / case.name
            folder.mkdir(parents=True)
            case.build(folder, linears)
            with pytest.raises(grpc.RpcError) as caught:
                stubs.adapters.Load(adapters_pb2.LoadAdapterRequest(path=f"hostile/{case.name}", id=ID), timeout=60)
            code, details = caught.value.code(), caught.value.details()
            told = details.startswith(f"adapter '{ID}': ") and case.word in details
            if code is not grpc.StatusCode.FAILED_PRECONDITION or not told:
                wrong[case.name] = (code, details)
        assert wrong == {}
        assert len(HOSTILE["HOSTILE"]) > 100
        assert [adapter.id for adapter in client.adapters()] == sorted(RECIPES)
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, before)
        (adapter_root / "hostile" / "good").mkdir()
        HOSTILE["write_good"](adapter_root / "hostile" / "good", linears)
        assert client.load_adapter("hostile/good", id=ID).id == ID
        assert (client.embed("x", adapter=ID).vectors != client.embed("x").vectors).any()
        client.unload_adapter(ID)
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, before)


@pytest.mark.parametrize(
    "path", ["../{name}", "/etc", "{outside}", "linked-out", "retrieval/../../{name}", "a\0b", "~"]
)
def test_a_path_that_leaves_the_root_is_refused(
    client: Client, adapter_root: Path, tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "good"
    outside.mkdir()
    HOSTILE["write_good"](outside)
    link = adapter_root / "linked-out"
    link.symlink_to(outside)
    named = path.format(name=outside.relative_to(adapter_root.parent), outside=outside)
    try:
        with pytest.raises(AdapterRejected) as refused:
            client.load_adapter(named, id=ID)
    finally:
        link.unlink()
    assert any(word in str(refused.value) for word in ("outside the adapter root", "cannot be resolved", "folder"))
    assert ID not in {adapter.id for adapter in client.adapters()}


def test_a_load_call_that_says_nothing_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="path is empty"):
        client.load_adapter("")
    with pytest.raises(NotFound, match="'nobody' is not loaded"):
        client.unload_adapter("nobody")
    with pytest.raises(AdapterRejected, match="id is"):
        client.load_adapter(SPARES[0], id="../x")


def test_load_use_unload_and_load_again(client: Client) -> None:
    first = client.load_adapter(SPARES[0], id="mine")
    assert client.load_adapter(SPARES[0], id="mine") == first
    with pytest.raises(AdapterConflict, match="unload it first"):
        client.load_adapter(SPARES[1], id="mine")
    vectors = client.embed("a red boat", adapter="mine").vectors
    client.unload_adapter("mine")
    assert "mine" in str(client.embed("a red boat", adapter="mine", errors="return").errors[0])
    client.load_adapter(SPARES[1], id="mine")
    other = client.embed("a red boat", adapter="mine").vectors
    assert (other != vectors).any()
    client.unload_adapter("mine")
    client.load_adapter(SPARES[0], id="mine")
    np.testing.assert_array_equal(client.embed("a red boat", adapter="mine").vectors, vectors)
    client.unload_adapter("mine")


def test_adapters_come_and_go_under_traffic(client: Client, before: NDArray[Any]) -> None:
    """Every answer is the right vector, or says that the adapter is not there; never another adapter's vector."""
    wanted = {}
    for path in SPARES:
        client.load_adapter(path, id="mine")
        wanted[path] = client.embed("a red boat", adapter="mine")
        client.unload_adapter("mine")
    by_space = {found.spaces[0]: found.vectors[0] for found in wanted.values()}
    assert len(by_space) == 3
    stop, served = threading.Event(), []

    def traffic() -> int:
        count = 0
        while not stop.is_set():
            found = client.embed([Text("a red boat", adapter="mine"), *TEXTS], errors="return")
            assert set(found.errors) <= {0}
            np.testing.assert_array_equal(found.vectors[1:], before)
            if found.errors:
                assert isinstance(found.errors[0], NotFound)
            else:
                np.testing.assert_array_equal(found.vectors[0], by_space[found.spaces[0]])
                served.append(found.spaces[0])
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(traffic) for _ in range(4)]
        try:
            for cycle in range(24):
                client.load_adapter(SPARES[cycle % 3], id="mine")
                seen = len(served)
                wait_for(lambda seen=seen: len(served) > seen or any(f.done() for f in running), "a text used it")
                client.unload_adapter("mine")
        finally:
            stop.set()
        assert min(future.result() for future in running) > 3
    assert set(served) == set(by_space)
    assert [adapter.id for adapter in client.adapters()] == sorted(RECIPES)
