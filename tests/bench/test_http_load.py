"""The HTTP load generator on a small server of its own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from harness.http_load import post


class Handler(BaseHTTPRequestHandler):
    """Notes every body; answers with 429 where it says "refuse", in chunks where it says "chunks"."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: list[tuple[str, Any, tuple[str, int]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, body["input"][0], self.client_address))
        self.send_response(429 if body["input"] == ["refuse"] else 200)
        if body["input"] == ["chunks"]:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"0\r\n\r\n")
            return
        reply = b"x" * body.get("size", 10)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on standard error."""


@pytest.fixture
def http_server() -> Iterator[tuple[str, list[Any]]]:
    """Its address and what it has seen."""
    handler = type("Noting", (Handler,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", handler.seen
        server.shutdown()
        thread.join()


def bodies(*texts: str, **more: Any) -> list[bytes]:
    return [json.dumps({"input": [text], **more}).encode() for text in texts]


def test_each_body_is_posted_once_over_connections_that_stay(http_server: tuple[str, list[Any]]) -> None:
    address, seen = http_server
    texts = [f"text {number}" for number in range(400)]
    found = post(address, "/embeddings", bodies(*texts), connections=8, seconds=30)
    assert found.statuses == [200] * 400
    assert sorted(text for _, text, _ in seen) == sorted(texts)
    assert {path for path, _, _ in seen} == {"/embeddings"}
    assert len({client for _, _, client in seen}) == 8
    assert found.rate == pytest.approx(400 / found.wall_seconds)
    assert len(found.latencies) == 400 and min(found.latencies) > 0


def test_refusals_and_large_answers_are_counted(http_server: tuple[str, list[Any]]) -> None:
    found = post(http_server[0], "/", bodies("a", "refuse", "b", size=2_000_000), connections=1, seconds=30)
    assert found.statuses == [200, 429, 200]


def test_the_time_ends_the_loop(http_server: tuple[str, list[Any]]) -> None:
    found = post(http_server[0], "/", bodies(*["a"] * 100_000), connections=2, seconds=0.3)
    assert 0.3 <= found.wall_seconds < 5 and 2 <= len(found.statuses) < 100_000


def test_an_answer_in_chunks_is_an_error(http_server: tuple[str, list[Any]], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="standard error"):
        post(http_server[0], "/", bodies("chunks"), connections=1, seconds=1)
    assert "does not say how long it is" in capfd.readouterr().err


def test_other_machines_are_refused() -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        post("192.0.2.1:80", "/", [b""], connections=1, seconds=1)
