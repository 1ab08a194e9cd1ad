"""The pages over HTTP: formats, health, and clients that take their time or come in crowds."""

import http.client
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from embedmux.server.errors import InvalidConfig
from embedmux.server.facts import ServerState
from embedmux.server.metrics import http as metrics_http
from embedmux.server.metrics.http import MAX_CONNECTIONS, MetricsServer
from embedmux.server.metrics.ports import Sources


class State:
    """The server's state, as a test sets it."""

    now = ServerState.SERVING


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(sources: Sources, state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    monkeypatch.setattr(metrics_http, "LOOK_S", 0.02)
    monkeypatch.setattr(metrics_http, "TIMEOUT_S", 0.3)
    found = MetricsServer(":0", replace(sources, state=lambda: state.now))
    yield found
    found.close()


def get(server: MetricsServer, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, content type and text."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers={"Accept": accept} if accept else {})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, response.getheader("Content-Type", ""), text


def test_metrics_come_in_the_format_that_is_asked_for(server: MetricsServer) -> None:
    status, content_type, text = get(server, "/metrics?name=any")
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert 'embedmux_build_info{version="1.2.3"} 1.0' in text and "process_cpu_seconds_total" in text
    status, content_type, text = get(server, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_health_is_good_only_while_the_server_serves(server: MetricsServer, state: State) -> None:
    assert get(server, "/healthz")[::2] == (200, "serving\n")
    for state.now in set(ServerState) - {ServerState.SERVING}:
        assert get(server, "/healthz")[::2] == (503, f"{state.now.value}\n")


def test_other_paths_are_told_what_there_is(server: MetricsServer) -> None:
    assert get(server, "/")[::2] == (404, "here are /metrics and /healthz\n")


def test_a_slow_client_is_cut_off_and_a_crowd_is_refused(server: MetricsServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(MAX_CONNECTIONS)]
    with socket.create_connection(("127.0.0.1", server.port), 10) as refused:
        assert b" 503 " in refused.recv(1000)
    for connection in idle:  # none of them ever sends a whole request
        assert connection.recv(1000) == b""
        connection.close()
    assert get(server, "/healthz")[0] == 200


def test_an_address_that_is_taken_or_is_none_says_so(server: MetricsServer, sources: Sources) -> None:
    with pytest.raises(
        OSError, match=rf"metrics_address '127.0.0.1:{server.port}' cannot be bound \(.*; choose another"
    ):
        MetricsServer(f"127.0.0.1:{server.port}", sources)
    with pytest.raises(InvalidConfig, match="metrics_address is 'localhost'; it takes HOST:PORT"):
        MetricsServer("localhost", sources)
