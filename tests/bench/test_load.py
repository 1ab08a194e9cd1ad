"""The load generator on a real gRPC server: what it notes is what happened."""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness.http2.load import Load, arrivals, poisson, run_together
from harness.http2.plans import Closed, Open

OK, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE, LOST = 0, 4, 7, 8, 14, 100
NOW = array("d", [0.0])


@pytest.fixture(scope="module")
def load(server: Any) -> Iterator[Load]:
    with Load(server.address, connections=2) as found:
        yield found


def at_once(bodies: list[bytes], **options: Any) -> Open:
    return Open(bodies, NOW * len(bodies), **options)


def test_every_call_has_its_status_and_size(load: Load) -> None:
    found = load.run(at_once([b"ok:0", b"ok:5000", b"refuse", b"late", b"slow"]))
    assert found.status.tolist() == [OK, OK, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, OK]
    assert found.message_bytes.tolist() == [0, 5000, 0, 0, 0]
    assert found.pushback_ms[2] == 250
    assert np.isnan(np.delete(found.pushback_ms, 2)).all()


def test_times_are_in_order_and_a_slow_answer_is_late(load: Load) -> None:
    found = load.run(at_once([b"ok:1"] * 20 + [b"slow"]))
    assert found.started == found.scheduled[0]
    assert (found.scheduled <= found.sent).all() and (found.sent < found.received).all()
    assert (found.received <= found.ended).all()
    assert found.received[-1] - found.sent[-1] >= 0.02
    assert 0 < found.cpu_seconds < found.wall_seconds


def test_thousands_of_calls_go_over_few_streams(load: Load) -> None:
    found = load.closed([b"ok:%d" % (index % 3000) for index in range(4000)], in_flight=64, seconds=60, gather_s=0.001)
    assert (found.status == OK).all()
    assert found.message_bytes.tolist() == [index % 3000 for index in range(4000)]
    assert found.rate() == pytest.approx(4000 / found.wall_seconds, rel=0.05)


def test_a_closed_loop_ends_with_its_time_and_keeps_its_calls_in_flight(load: Load) -> None:
    found = load.closed([b"slow"] * 10_000, in_flight=4, seconds=0.5)
    assert (found.status == OK).all()
    assert 0.5 <= found.wall_seconds < 5.0
    order = np.searchsorted(np.sort(found.received), found.sent, "right")  # how many had ended before each was sent
    assert (np.arange(len(order)) - order).max() < 4


def test_messages_larger_than_every_window_arrive_both_ways(load: Load) -> None:
    megabytes = 3 << 20
    up, down = b"length:" + bytes(megabytes), b"ok:%d" % megabytes
    found = load.run(at_once([up, down, b"ok:1", up, down, b"length:" + bytes(200_000), b"ok:2"]))
    assert (found.status == OK).all()
    sizes = [len(up) // 1024, megabytes, 1, len(up) // 1024, megabytes, 200_007 // 1024, 2]
    assert found.message_bytes.tolist() == sizes


def test_a_deadline_ends_calls_that_nobody_answers(load: Load) -> None:
    found = load.run(at_once([b"keep"] * 3 + [b"ok:1"], timeout_s=0.2))
    assert found.status.tolist() == [DEADLINE_EXCEEDED] * 3 + [OK]
    assert (found.received[:3] - found.sent[:3] >= 0.2).all() and found.wall_seconds < 2.0


def test_metadata_reach_the_server(load: Load) -> None:
    found = load.run(at_once([b"tenant:red", b"tenant:blue"], metadata={"x-embedmux-tenant": "red"}))
    assert found.status.tolist() == [OK, PERMISSION_DENIED]


def test_an_open_loop_keeps_its_schedule(load: Load) -> None:
    offsets = arrivals(rate=400, seconds=2, seed=7, first_burst=30)
    found = load.poisson([b"ok:1"] * 1000, rate=400, seconds=2, seed=7, first_burst=30)
    assert abs(len(offsets) - 830) < 150
    assert np.allclose(found.scheduled - found.started, offsets, atol=1e-6)
    assert (found.status == OK).all()
    assert np.median(found.sent - found.scheduled) < 0.01


def test_latency_counts_from_the_schedule(load: Load) -> None:
    found = load.run(at_once([b"slow"] * 10, max_in_flight=1))
    assert found.latencies().max() >= 10 * 0.02
    assert (found.received - found.sent).min() >= 0.02


def test_two_generators_start_together(load: Load, server: Any) -> None:
    with Load(server.address) as other:
        one, two = run_together(
            (load, Closed([b"ok:1"] * 200, 8, 5.0)), (other, poisson([b"ok:1"] * 200, rate=100, seconds=0.5, seed=1))
        )
    assert (one.status == OK).all() and (two.status == OK).all()
    assert abs(one.started - two.started) < 0.5


def test_a_killed_server_loses_open_calls(own_server: Any) -> None:
    with Load(own_server.address, connections=2) as load:
        load.prepare(Open([b"ok:1"] + [b"keep"] * 6 + [b"ok:1"], array("d", [0.0] * 7 + [60.0])))
        load.start()
        for _ in range(6):
            own_server.next_call()
        own_server.kill()
        found = load.outcome()
    assert found.status[0] == OK
    assert set(found.status[1:].tolist()) <= {LOST, UNAVAILABLE} and LOST in found.status
    assert not np.isnan(found.received[:7]).any() and np.isnan(found.sent[7])
    assert found.wall_seconds < 30


def test_no_server_is_an_error_and_the_next_run_goes_on(own_server: Any) -> None:
    with Load(own_server.address) as load:
        assert load.run(at_once([b"ok:1"])).status.tolist() == [OK]
        own_server.kill()
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                load.run(at_once([b"ok:1"]))


@pytest.mark.parametrize("address", ["192.0.2.1:50051", "example.com:80", "0.0.0.0:50051", "127.0.0.1"])
def test_other_machines_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        Load(address)


def test_too_few_bodies_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bodies are given"):
        poisson([b"", b""], rate=100, seconds=1, seed=1)
