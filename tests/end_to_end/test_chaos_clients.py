"""Clients that die, cancel, do not read, or ask for too much: the others are answered, and memory stays bounded."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from end_to_end_adapters import RECIPES, SPARES
from end_to_end_support import WAIT_S, Served, embed_request, text_of, texts_of, wait_for
from numpy.typing import NDArray

from embedmux.client.errors import push_back_ms
from embedmux.client.texts import Text
from embedmux.client.vectors import decode
from embedmux.proto import embed_pb2
from embedmux.server.errors import Overloaded

pytestmark = pytest.mark.slow
MEBIBYTE = 1 << 20
TEXTS = [Text(text, task=task) for text in texts_of(4, seed=21, longest=30) for task in ("classification", None)]
# What streams until it is killed; says so once the first answer is there.
STREAMER = """
import sys
from itertools import repeat
from embedmux.client.blocking import Client
with Client(sys.argv[1]) as client:
    for _ in client.embed_stream(repeat(["the river by the castle"] * 32), window=8):
        print("answered", flush=True)
"""


@pytest.fixture(scope="module")
def wanted(server: Served) -> NDArray[Any]:
    """The vectors of TEXTS when nothing else happens."""
    with server.client() as client:
        return client.embed(TEXTS).vectors


def test_clients_killed_in_the_middle_of_a_stream_hurt_nobody(server: Served, wanted: NDArray[Any]) -> None:
    with server.client() as client:
        for _ in range(3):
            command = [sys.executable, "-c", STREAMER, server.address]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
                assert killed.stdout is not None
                assert killed.stdout.readline() == b"answered\n"
                killed.kill()
            np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)
    assert server.process.poll() is None


def test_a_thousand_cancelled_requests_do_not_disturb_the_others(server: Served, wanted: NDArray[Any]) -> None:
    generator = random.Random(22)
    stubs = server.stubs()
    request = embed_request(*texts_of(8, seed=23, longest=60))
    stop = threading.Event()

    def others() -> int:
        with server.client() as client:
            count = 0
            while not stop.is_set():
                np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)
                count += 1
            return count

    codes: list[grpc.StatusCode] = []
    with ThreadPoolExecutor(2) as pool:
        answered = [pool.submit(others) for _ in range(2)]
        try:
            for _ in range(10):
                calls = [stubs.embedder.Embed.future(request, timeout=WAIT_S) for _ in range(100)]
                # Some are under way when they are cancelled, some not even sent.
                calls[generator.randrange(8)].result()
                for call in calls:
                    call.cancel()
                codes += [call.code() for call in calls]
        finally:
            stop.set()
        assert min(future.result() for future in answered) > 0
    assert len(codes) == 1000
    assert set(codes) == {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    assert codes.count(grpc.StatusCode.CANCELLED) > 500
    with server.client() as client:
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)


def test_a_full_queue_refuses_with_a_time_to_wait_and_answers_what_it_took(
    serve: Callable[..., AbstractContextManager[Served]],
) -> None:
    texts = texts_of(8, seed=24, longest=100)
    with serve("--max-queue-tokens", "2000", "--max-batch-tokens", "256") as served, served.client() as client:
        wanted = client.embed(texts).vectors
        stubs = served.stubs()
        calls = [stubs.embedder.Embed.future(embed_request(*texts), timeout=WAIT_S) for _ in range(100)]
        refused = [call.exception(WAIT_S) for call in calls if call.exception(WAIT_S)]
        taken = [call.result() for call in calls if not call.exception(WAIT_S)]
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all("max_queue_tokens" in error.details() for error in refused)
        assert all(0 < push_back_ms(error) <= 10_000 for error in refused)
        assert taken
        for reply in taken:
            assert not reply.errors
            np.testing.assert_array_equal(decode(reply, len(texts)).vectors, wanted)

        def insist(_: int) -> NDArray[Any]:
            """Asks again as long as the server says to."""
            with served.client(max_attempts=1) as patient:
                for _ in range(1000):
                    try:
                        return patient.embed(texts).vectors
                    except Overloaded as error:
                        time.sleep(error.retry_after_s)
            raise AssertionError("refused a thousand times")

        with ThreadPoolExecutor(16) as pool:
            for vectors in pool.map(insist, range(32)):
                np.testing.assert_array_equal(vectors, wanted)
        # On a stream the refusal belongs to one request, and the client sends that one again.
        streams = [stubs.embedder.EmbedStream(iter([embed_request(*texts)] * 8), timeout=WAIT_S) for _ in range(10)]
        failures = [reply.failure for stream in streams for reply in stream if reply.HasField("failure")]
        assert all(failure.code == 8 and failure.retry_after_ms > 0 for failure in failures)
        for found in client.embed_stream([texts] * 4):
            np.testing.assert_array_equal(found.vectors, wanted)


def test_a_reader_that_does_not_read_fills_its_window_only(server: Served, wanted: NDArray[Any]) -> None:
    total, padding = 800, "x" * (64 << 10)
    sent = 0

    def requests() -> Iterator[embed_pb2.EmbedRequest]:
        nonlocal sent
        for sent in range(1, total + 1):
            # The padding comes back with the answer, so both directions fill up.
            yield embed_request("a red boat", request_id=f"{sent} {padding}")

    front = psutil.Process(server.process.pid)
    before = front.memory_info().rss
    call = server.stubs().embedder.EmbedStream(requests(), timeout=4 * WAIT_S)
    last = [0, time.monotonic()]

    def is_stuck() -> bool:
        if sent != last[0]:
            last[:] = [sent, time.monotonic()]
        return sent > 0 and time.monotonic() - last[1] > 2

    wait_for(is_stuck, "the stream is stuck")
    assert sent < total / 2, "the server takes what nobody reads the answers to"
    assert front.memory_info().rss - before < 24 * MEBIBYTE
    with server.client() as client:
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)
    order = [int(reply.request_id.split()[0]) for reply in call]
    assert order == list(range(1, total + 1))


def test_what_misses_its_deadline_is_not_computed(server: Served, wanted: NDArray[Any]) -> None:
    stubs, engine = server.stubs(), server.engine()
    assert engine is not None
    long = embed_request(*["river " * 200] * 64)

    def cost(deadline_s: float) -> float:
        """Processor seconds of the engine until it has answered ``long`` and what came after."""
        before = sum(engine.cpu_times()[:2])
        call = stubs.embedder.Embed.future(long, timeout=deadline_s)
        error = call.exception()
        assert error is None or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (error is None) is (deadline_s == WAIT_S)
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)
        return sum(engine.cpu_times()[:2]) - before

    with server.client() as client:
        assert cost(WAIT_S) > 2 * cost(0.03)
        busy = stubs.embedder.Embed.future(long, timeout=WAIT_S)
        assert stubs.embedder.Embed.future(embed_request("x"), timeout=1e-4).exception() is not None
        np.testing.assert_array_equal(client.embed(TEXTS).vectors, wanted)
        assert len(busy.result().num_tokens) == 64


def test_memory_is_flat_over_rounds_of_everything(bfloat16_server: Served) -> None:
    """Six more rounds may not add 24 MiB to the most that the front or the engine held in three rounds of warming up.

    The most, since the heap breathes: what a batch needed for its activations is given back now and then.
    """
    engine = bfloat16_server.engine()
    assert engine is not None
    processes = [psutil.Process(bfloat16_server.process.pid), engine]
    generator = random.Random(25)
    stubs = bfloat16_server.stubs()
    texts = [text_of(generator.randint(3, 60), generator) for _ in range(64)]

    def work(seed: int) -> None:
        choose = random.Random(seed)
        tasks = [None, *RECIPES]
        for _ in range(10):
            chosen = [Text(text, task=choose.choice(tasks), role="query") for text in choose.sample(texts, 12)]
            assert not client.embed([*chosen, Text("")], errors="return").vectors[-1].any()
        cancelled = [stubs.embedder.Embed.future(embed_request(*texts[:8]), timeout=WAIT_S) for _ in range(20)]
        for call in cancelled:
            call.cancel()
        for found in client.embed_stream([texts[:8]] * 6):
            assert len(found) == 8

    used = []
    with bfloat16_server.client() as client, ThreadPoolExecutor(4) as pool:
        for number in range(9):
            client.load_adapter(SPARES[number % 3], id="passing")
            list(pool.map(work, range(4)))
            client.unload_adapter("passing")
            used.append([process.memory_info().rss / MEBIBYTE for process in processes])
    growth = np.max(used[6:], axis=0) - np.max(used[:3], axis=0)
    assert (growth < 24).all(), f"MiB of front and engine by round: {np.round(used).tolist()}"
