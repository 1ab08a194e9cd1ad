"""The engine dies, the front dies, the server is told to stop at every moment: what was accepted is answered."""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from end_to_end_adapters import SPARES
from end_to_end_support import START_S, WAIT_S, Served, embed_request, wait_for
from grpc_health.v1 import health_pb2

from embedmux.client.texts import Text
from embedmux.client.vectors import decode

pytestmark = pytest.mark.slow

Serve = Callable[..., AbstractContextManager[Served]]
HealthStatus = health_pb2.HealthCheckResponse
SLOW = embed_request(*(f"{at} " + "the river by the castle of the king " * 20 for at in range(400)))  # seconds of work
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def begin_slow_work(served: Served, stubs: Any) -> Any:
    """A request that the engine is computing and will be for seconds."""
    engine = served.engine()
    assert engine is not None
    before = engine.cpu_times().user
    call = stubs.embedder.Embed.future(SLOW, timeout=START_S)
    wait_for(lambda: engine.cpu_times().user > before + 0.2, "the engine works on the request")
    assert not call.done()
    return call


def is_gone(process: psutil.Process) -> bool:
    """Whether the process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_engine_is_replaced_and_its_adapters_are_back(serve: Serve) -> None:
    with serve() as served, served.client() as client:
        stubs = served.stubs()
        client.load_adapter(SPARES[0], id="mine", placement="merged")
        client.unload_adapter("clustering")
        # Another adapter under the name of one that the server loads when it starts.
        client.unload_adapter("text-matching")
        client.load_adapter(SPARES[1], id="text-matching")
        asked = ({"adapter": "mine"}, {"adapter": "text-matching"}, {"task": "classification"}, {})
        texts = [Text("a red boat", **options) for options in asked]
        wanted, listed = client.embed(texts), client.adapters()
        for _ in range(2):
            seen: list[int] = []
            watch = stubs.health.Watch(health_pb2.HealthCheckRequest(), timeout=START_S)
            first = next(watch)
            assert first.status == HealthStatus.SERVING
            watcher = threading.Thread(target=follow, args=(watch, seen))
            watcher.start()
            engine = served.engine()
            assert engine is not None
            call = begin_slow_work(served, stubs)
            engine.kill()
            assert call.exception(WAIT_S).code() is UNAVAILABLE
            assert "engine process ended" in call.exception().details()
            wait_for(lambda seen=seen: HealthStatus.NOT_SERVING in seen, "health says NOT_SERVING")
            with pytest.raises(grpc.RpcError) as refused:
                stubs.embedder.Embed(embed_request("x"), timeout=WAIT_S)
            assert refused.value.code() is UNAVAILABLE
            wait_for(lambda seen=seen: seen[-1:] == [HealthStatus.SERVING], "health says SERVING again", START_S)
            watch.cancel()
            watcher.join(WAIT_S)
            assert sorted(client.adapters(), key=str) == sorted(listed, key=str)
            found = client.embed(texts)
            np.testing.assert_array_equal(found.vectors, wanted.vectors)
            assert found.spaces == wanted.spaces
        assert "'clustering'" in str(client.embed("x", task="clustering", errors="return").errors[0])
        client.unload_adapter("mine")
        client.load_adapter("clustering")
        assert served.stop() == 0


def follow(watch: Any, seen: list[int]) -> None:
    """Notes every status until the watch is cancelled."""
    try:
        for reply in watch:
            seen.append(reply.status)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.CANCELLED


def test_told_to_stop_it_answers_what_it_took_and_refuses_the_rest(serve: Serve) -> None:
    with serve() as served:
        stubs, engine = served.stubs(), served.engine()
        assert engine is not None
        with served.client() as client:
            alone = client.embed([SLOW.texts[at].text for at in (0, 199, 399)])
        waiting = threading.Event()

        def requests() -> Any:
            yield embed_request("one")
            waiting.wait(WAIT_S)

        stream = stubs.embedder.EmbedStream(requests(), timeout=START_S)
        assert next(stream).dimensions == 384
        call = begin_slow_work(served, stubs)
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        waiting.set()
        assert ended.value.code() is UNAVAILABLE
        assert "first 1 requests of this stream were answered" in ended.value.details()
        with pytest.raises(grpc.RpcError) as refused:
            served.stubs().embedder.Embed(embed_request("new"), timeout=WAIT_S)
        assert refused.value.code() is UNAVAILABLE
        found = decode(call.result(START_S), len(SLOW.texts))
        assert not found.errors
        np.testing.assert_array_equal(found.vectors[[0, 199, 399]], alone.vectors)
        assert served.process.wait(WAIT_S) == 0
        wait_for(lambda: is_gone(engine), "the engine ended")


def test_it_says_that_it_loads_and_can_be_stopped_meanwhile(serve: Serve) -> None:
    with serve(ready=False) as served:
        stubs = served.stubs()
        reply = stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S, wait_for_ready=True)
        assert reply.status == HealthStatus.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stubs.embedder.Embed(embed_request("too early"), timeout=WAIT_S)
        assert refused.value.code() is UNAVAILABLE
        engine = wait_for(served.engine, "the engine loads")
        assert served.stop() == 0
        assert is_gone(engine)


def test_told_to_stop_while_the_engine_is_replaced_it_stops(serve: Serve) -> None:
    with serve() as served:
        engine = served.engine()
        assert engine is not None
        engine.kill()
        wait_for(lambda: (child := served.engine()) and child.pid != engine.pid, "a new engine loads")
        replaced = served.engine()
        assert served.stop() == 0
        assert replaced is None or is_gone(replaced)


def test_an_engine_does_not_outlive_its_front(serve: Serve) -> None:
    with serve() as served:
        engine = served.engine()
        assert engine is not None
        begin_slow_work(served, served.stubs())
        served.process.kill()
        wait_for(lambda: is_gone(engine), "the engine ended")
        served.process.wait(WAIT_S)


def test_a_drain_has_an_end(serve: Serve) -> None:
    with serve("--drain-s", "0.5") as served:
        engine = served.engine()
        assert engine is not None
        call = begin_slow_work(served, served.stubs())
        assert served.stop() == 0
        assert call.exception(WAIT_S).code() is UNAVAILABLE
        assert is_gone(engine)
