"""GET /metrics and GET /healthz, on threads of their own beside the event loop."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from embedmux.server.config import host_and_port
from embedmux.server.facts import ServerState
from embedmux.server.metrics.exposition import registry
from embedmux.server.metrics.ports import Sources

logger = logging.getLogger(__name__)
MAX_CONNECTIONS = 8
TIMEOUT_S = 5.0  # for a whole exchange, so that nobody keeps a thread by reading or writing slowly
LOOK_S = 0.5
FRESH_S = 0.1  # a page this young is shown again: scrapers in a hurry cost the event loop nothing
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class MetricsServer:
    """Listens from the start, until ``close``. Raises OSError for an address that cannot be bound."""

    def __init__(self, address: str, sources: Sources) -> None:
        host, port = host_and_port(address, "metrics_address")
        try:
            self._server = _Server(host, port, sources)
        except OSError as error:
            raise OSError(
                f"metrics_address {address!r} cannot be bound ({error.strerror}); choose another one or free it"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK_S,), name="embedmux-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listens no more; takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    """One thread for each connection, of which there are few."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64  # that wait to be accepted: with fewer, a crowd would have to knock twice

    def __init__(self, host: str, port: int, sources: Sources) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.sources = sources
        self.page = _Page(registry(sources))
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection; one too many is told so."""
        if not self._room.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.send(BUSY)
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one request on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._room.release()

    def service_actions(self) -> None:
        """Cuts off connections that take too long."""
        now = time.monotonic()
        for request, since in list(self._since.items()):
            if now - since > TIMEOUT_S:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault; all else is ours."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request for metrics failed")


class _Page:
    """The metrics as text, made by one thread at a time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}  # by content type

    def show(self, accept: str) -> tuple[str, bytes]:
        """Content type and text: OpenMetrics for whoever accepts it, else Prometheus' own format."""
        encode, content_type = choose_encoder(accept)
        with self._lock:
            made_at, text = self._made.get(content_type, (0.0, b""))
            if not text or time.monotonic() - made_at > FRESH_S:
                text = encode(self._registry)
                self._made = {content_type: (time.monotonic(), text)}
        return content_type, text


class _Handler(BaseHTTPRequestHandler):
    """One exchange: HTTP/1.0, the connection ends with it."""

    server: _Server

    def do_GET(self) -> None:
        """Metrics, health, or the names of both."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            content_type, text = self.server.page.show(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, text, content_type)
        elif path == "/healthz":
            state = self.server.sources.state()
            status = HTTPStatus.OK if state is ServerState.SERVING else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, f"{state.value}\n".encode())
        else:
            self._send(HTTPStatus.NOT_FOUND, b"here are /metrics and /healthz\n")

    def version_string(self) -> str:
        """Who answers, and nothing of what it is built on."""
        return "embedmux"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are no news."""
        logger.debug(format, *arguments)

    def _send(self, status: HTTPStatus, text: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
