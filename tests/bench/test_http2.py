"""Frames that a gRPC server seldom sends, from a peer that follows a script; and header blocks."""

import socket
import threading
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from harness.http2 import frames, run
from harness.http2.frames import frame
from harness.http2.plans import Open, Record, loopback_target

SETTINGS = frame(frames.SETTINGS, 0, 0, frames.SETTING.pack(frames.MAX_CONCURRENT_STREAMS, 100))
REPLY_HEADERS = b"\x88@\x0ccontent-type\x10application/grpc"
REFUSED = b"@\x0bgrpc-status\x018\x00\x16grpc-retry-pushback-ms\x03100\x00\x0cgrpc-message\x08too many"


def run_against(script: Callable[[socket.socket], None], bodies: list[bytes]) -> Record:
    """The record of calls, all due at once, on a peer that greets, reads them all and then does as ``script`` says."""

    def peer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(SETTINGS)
            received = b""
            while not all(b"\0" + len(body).to_bytes(4, "big") + body in received for body in bodies):
                received += connection.recv(1 << 16)
            script(connection)
            while connection.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=peer)
        thread.start()
        target = loopback_target(f"127.0.0.1:{listener.getsockname()[1]}", connections=1, path="/a/b")
        found = run.Run(target, Open(bodies, array("d", [0.0] * len(bodies))))
        found.go()
        thread.join()
    return found.record


def answer(stream: int, trailers: bytes = frames.OK_TRAILERS, message: bytes = b"") -> bytes:
    data = b"\0" + len(message).to_bytes(4, "big") + message
    return (
        frame(frames.HEADERS, frames.END_HEADERS, stream, REPLY_HEADERS)
        + frame(frames.DATA, 0, stream, data)
        + frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, trailers)
    )


def word(value: int) -> bytes:
    return frames.WORD.pack(value)


def test_resets_have_statuses_of_their_own() -> None:
    codes = (12, 8, 11, 2, 99)
    resets = b"".join(frame(frames.RST_STREAM, 0, 2 * i + 1, word(code)) for i, code in enumerate(codes))
    record = run_against(lambda peer: peer.sendall(resets), [b"call%d" % i for i in range(5)])
    assert record.status == [7, frames.CANCELLED, frames.RESOURCE_EXHAUSTED, 13, 13]


def test_a_refused_stream_is_tried_again() -> None:
    def script(peer: socket.socket) -> None:
        peer.sendall(frame(frames.RST_STREAM, 0, 1, word(frames.REFUSED_STREAM)))
        received = b""
        while b"first" not in received:
            received += peer.recv(1 << 16)
        peer.sendall(answer(5, message=b"abc") + answer(3))

    record = run_against(script, [b"first", b"second"])
    assert record.status == [frames.OK] * 2
    assert record.message_bytes == [8, 5]


def test_a_goodbye_spares_the_calls_that_the_server_took() -> None:
    def script(peer: socket.socket) -> None:
        peer.sendall(frame(frames.GOAWAY, 0, 0, word(1) + word(0)) + answer(1))

    assert run_against(script, [b"first", b"second"]).status == [frames.OK, frames.UNAVAILABLE]


def test_a_broken_connection_loses_its_calls() -> None:
    record = run_against(lambda peer: peer.shutdown(socket.SHUT_RDWR), [b"first", b"second"])
    assert record.status == [frames.LOST] * 2


def test_a_call_that_nobody_ends_stays_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DRAIN_S", 0.2)
    record = run_against(lambda peer: peer.sendall(answer(1)), [b"first", b"second"])
    assert record.status == [frames.OK, -1]
    assert record.received[1] != record.received[1]


def test_answers_may_come_byte_by_byte() -> None:
    def script(peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in answer(3, REFUSED, b"abc") + answer(1, message=bytes(300)):
            peer.sendall(bytes([byte]))

    record = run_against(script, [b"first", b"second"])
    assert record.status == [frames.OK, frames.RESOURCE_EXHAUSTED]
    assert record.message_bytes == [305, 8]
    assert record.pushback_ms == {1: 100}


def test_pings_and_settings_are_answered() -> None:
    got = []

    def script(peer: socket.socket) -> None:
        peer.sendall(frame(frames.PING, 0, 0, b"12345678") + SETTINGS)
        wanted = frame(frames.PING, frames.ACK, 0, b"12345678") + frame(frames.SETTINGS, frames.ACK, 0)
        received = b""
        while wanted not in received:
            received += peer.recv(1 << 16)
        got.append(wanted)
        peer.sendall(answer(1))

    assert run_against(script, [b"first"]).status == [frames.OK]
    assert got


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (frame(frames.HEADERS, frames.END_STREAM, 1, b"@\x0bgrpc-status\x81\x0f"), "Huffman"),
        (frame(frames.DATA, frames.PADDED, 1, b"\0"), "padded"),
        (frame(frames.CONTINUATION, 0, 1, b""), "longer than a frame"),
    ],
)
def test_what_this_client_does_not_read_is_an_error(what: bytes, message: str) -> None:
    with pytest.raises(frames.ProtocolError, match=message):
        run_against(lambda peer: peer.sendall(what), [b"first"])


def test_header_blocks_are_read_back() -> None:
    metadata: dict[str, Any] = {"X-Request-Id": "a" * 126, "x-embedmux-tenant": ""}
    fields = frames.read_fields(frames.request_block("127.0.0.1:1", "/a/b", metadata, 1.5))
    assert fields == {
        b":path": b"/a/b", b":authority": b"127.0.0.1:1", b"te": b"trailers", b"content-type": b"application/grpc",
        b"grpc-timeout": b"1500m", b"x-request-id": b"a" * 126, b"x-embedmux-tenant": b"",
    }  # fmt: skip
    assert frames.read_fields(b"\x20\x88\x0f\x0d\x011" + b"\0\x01a\x7f\x09" + b"b" * 136) == {
        b"28": b"1",
        b"a": b"b" * 136,
    }


def test_long_headers_are_refused() -> None:
    with pytest.raises(ValueError, match="the limit is 126"):
        frames.request_block("127.0.0.1:1", "/a/b", {"x-request-id": "a" * 127}, None)


@pytest.mark.parametrize(("seconds", "header"), [(0.0001, "1m"), (30, "30000m"), (100_000, "100000S")])
def test_timeouts_have_at_most_eight_digits(seconds: float, header: str) -> None:
    assert frames.timeout_header(seconds) == header
