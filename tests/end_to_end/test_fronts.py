"""Several front processes before one engine: the same answers from each, whoever of them dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from end_to_end_support import START_S, WAIT_S, Served, serving, texts_of, wait_for

from embedmux.client.blocking import Client
from embedmux.server.config import ServeConfig
from embedmux.server.errors import EmbedmuxError, InvalidConfig, NotFound

pytestmark = pytest.mark.slow
FRONTS = 3


def fronts(served: Served) -> list[psutil.Process]:
    """The processes beside the first."""
    found = []
    for child in psutil.Process(served.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [child] if "embedmux.server.beside" in child.cmdline() else []
    return found


def ask_all(served: Served, texts: list[str]) -> set[bytes]:
    """The vectors, from so many new connections that every front has answered some with near certainty."""
    found = set()
    for _ in range(12):
        with served.client() as client:
            client.wait_until_serving(START_S)
            found.add(client.embed(texts, task="clustering").vectors.tobytes())
    return found


def test_every_front_answers_alike_hears_of_adapters_and_is_replaced(tmp_path: Path, adapter_root: Path) -> None:
    texts = texts_of(12, seed=5)
    with serving(tmp_path, "--adapters", str(adapter_root), "--frontends", str(FRONTS)) as served:
        wait_for(lambda: len(fronts(served)) == FRONTS - 1, "all fronts run")
        assert len(ask_all(served, texts)) == 1
        clients = [served.client() for _ in range(9)]
        clients[0].unload_adapter("clustering")
        for client in clients:
            wait_for(lambda client=client: is_unknown(client), "the front knows that the adapter is gone")
            client.close()
        served.client().load_adapter("clustering")
        one = ask_all(served, texts)

        gone = fronts(served)[0]
        gone.kill()
        wait_for(lambda: (found := fronts(served)) and gone.pid not in {each.pid for each in found}, "it is replaced")
        wait_for(lambda: len(fronts(served)) == FRONTS - 1, "all fronts run again")
        assert ask_all(served, texts) == one

        engine = served.engine()
        assert engine is not None
        engine.kill()
        wait_for(lambda: (new := served.engine()) and new.pid != engine.pid, "a new engine")
        assert ask_all(served, texts) == one
        children = fronts(served)
        assert served.stop() == 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def is_unknown(client: Client) -> bool:
    """Whether the client's front says that the adapter is not there."""
    try:
        client.embed("x", task="clustering")
    except NotFound:
        return True
    return False


def test_a_drain_answers_what_any_front_took(tmp_path: Path) -> None:
    with serving(tmp_path, "--frontends", "2") as served:
        wait_for(lambda: len(fronts(served)) == 1, "the other front runs")
        texts = [f"{at} the river by the castle" for at in range(512)]

        def ask(_: int) -> str:
            with served.client(batch_size=512, max_attempts=1, timeout=None) as client:
                try:
                    return f"{len(client.embed(texts).vectors)} vectors"
                except EmbedmuxError as error:
                    return f"{type(error).__name__}: {error}"

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, number) for number in range(8)]
            time.sleep(0.3)
            assert served.stop() == 0
            found = [answer.result() for answer in answers]
            assert all(each.startswith(("512 vectors", "Unavailable")) for each in found), found


def test_a_port_that_another_server_has_is_not_shared(tmp_path: Path) -> None:
    with serving(tmp_path, "--frontends", "2") as served:
        command = [sys.executable, "-m", "embedmux.server.cli", "serve", "--frontends", "2"]
        found = subprocess.run([*command, "--address", served.address], capture_output=True, text=True, timeout=WAIT_S)
        assert found.returncode == 1
        assert f"address {served.address!r} cannot be bound" in found.stderr


def test_an_engine_that_is_stuck_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--stuck-after-s", "2") as served, served.client(max_attempts=1) as client:
        wanted = client.embed("a red boat").vectors.tobytes()
        engine = served.engine()
        assert engine is not None
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EmbedmuxError, match="ended while it held this request"):
            client.embed("another red boat", timeout=WAIT_S)
        client.wait_until_serving(START_S)
        assert client.embed("a red boat").vectors.tobytes() == wanted
        assert "is silent since" in served.log.read_text()
        assert served.stop() == 0


def test_a_unix_socket_cannot_be_shared() -> None:
    with pytest.raises(InvalidConfig, match="only a host:port can be shared"):
        ServeConfig(address="unix:/tmp/x", frontends=2)
