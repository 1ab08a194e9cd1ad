"""One HTTP/2 connection with many unary calls on it; every microsecond here is taken from the server's cores."""

import math
import socket
import time

from harness.http2 import frames
from harness.http2.plans import Record, Target
from harness.http2.uploads import Uploads

BUFFER_BYTES = 1 << 18
# Credit goes back to the server when it has used this much of the largest window.
CREDIT_BYTES = 1 << 29
HANDSHAKE_S = 10.0


class Connection:
    """Opens calls, gathers what they write until ``flush``, and notes in the record what comes back.

    ``calls`` maps open streams to calls. ``is_open`` turns False when the server says goodbye or the connection breaks,
    which gives calls without an answer the status UNAVAILABLE. ``refused`` are calls that the server did not take up:
    they wait for another try, as gRPC's clients make it unasked. Raises OSError if it cannot connect, ProtocolError if
    the peer is not a gRPC server as this client knows it.
    """

    def __init__(self, target: Target, block: bytes, record: Record, *, timeout_s: float | None = None) -> None:
        self.calls: dict[int, int] = {}
        self.refused: list[int] = []
        self.is_open = True
        self.max_calls = 0
        self._record, self._timeout_s = record, timeout_s
        self._block = block
        self._start = frames.HEAD.pack(len(block) << 8 | frames.HEADERS, frames.END_HEADERS, 0)[:5]
        self._heads: dict[int, tuple[bytes, bytes]] = {}
        self._next_stream = 1
        self._out: list[bytes | memoryview] = []
        self._unsent = memoryview(b"")
        self._uploads = Uploads()
        self._credit = 0
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = self._skip = 0
        self._is_greeted = False
        self._socket = socket.create_connection((target.host, target.port), HANDSHAKE_S)
        self.file = self._socket.fileno()
        self._shake_hands()

    @property
    def wants_to_write(self) -> bool:
        """Whether the kernel has not taken all of the last flush."""
        return len(self._unsent) > 0

    @property
    def has_room(self) -> bool:
        """Whether one more call may be opened."""
        return self.is_open and len(self.calls) < self.max_calls

    def open(self, call: int, body: bytes) -> int:
        """Puts a call with a message of these bytes in line; returns its stream."""
        stream = self._next_stream
        self._next_stream = stream + 2
        self.calls[stream] = call
        number = stream.to_bytes(4, "big")
        size = len(body) + 5
        found = self._heads.get(size)
        if found is None:
            head = self._block + frames.HEAD.pack(size << 8 | frames.DATA, frames.END_STREAM, 0)[:5]
            self._heads[size] = found = head, b"\0" + frames.WORD.pack(len(body))
        if self._uploads.has_room(size):
            self._uploads.window -= size
            self._out += (self._start, number, found[0], number, found[1], body)
        else:
            self._out += (self._start, number, self._block, *self._uploads.add(stream, found[1] + body))
        return stream

    def cancel(self, stream: int, status: int, now: float) -> None:
        """Ends an open call from this side and tells the server."""
        self._uploads.drop(stream)
        self._out.append(frames.frame(frames.RST_STREAM, 0, stream, frames.WORD.pack(frames.CANCEL)))
        self._end(stream, status, now)

    def flush(self) -> None:
        """Writes what has gathered, as far as the kernel takes it."""
        while self._unsent or self._out:
            if not self._unsent:
                self._unsent = memoryview(b"".join(self._out))
                self._out.clear()
            try:
                count = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:  # reading tells the rest
                self.is_open, self._unsent = False, memoryview(b"")
                self._out.clear()
                return
            self._unsent = self._unsent[count:]

    def receive(self) -> int:
        """Reads once; returns how many calls have ended by that."""
        before = len(self.calls)
        try:
            count = self._socket.recv_into(self._view[self._filled :])
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        now = time.monotonic()
        if count == 0:
            self._lose(now)
        else:
            self._read(self._filled + count, now)
        return before - len(self.calls)

    def close(self) -> None:
        """Drops the connection, and with it what the server still works on."""
        self.is_open = False
        self._socket.close()

    def _shake_hands(self) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(frames.greeting())
        while not self._is_greeted and self.is_open:
            self.receive()
        if not self.is_open:
            raise ConnectionError(f"the server sent no HTTP/2 settings within {HANDSHAKE_S:.0f} s")
        self._socket.setblocking(False)
        self.flush()

    def _read(self, end: int, now: float) -> None:
        """Takes whole frames off the buffer; the bytes of a message are counted and not kept."""
        buffer, calls, record = self._buffer, self.calls, self._record
        unpack, startswith = frames.HEAD.unpack_from, buffer.startswith
        at = min(self._skip, end)
        self._skip -= at
        while end - at >= 9:
            word, flags, stream = unpack(buffer, at)
            kind, payload = word & 0xFF, at + 9
            after = payload + (word >> 8)
            if kind == frames.DATA:
                size = word >> 8
                self._credit += size
                call = calls.get(stream)
                if call is not None:
                    record.message_bytes[call] += size
                    if flags:
                        _refuse_padding(flags)
                        self._end(stream, frames.INTERNAL, now)  # gRPC ends a call with trailers, never with data
                if after > end:
                    self._skip, at = after - end, end
                    break
            elif after > end:
                break
            elif kind == frames.HEADERS:
                if flags & frames.END_STREAM:
                    call = calls.get(stream)
                    if call is None:
                        pass
                    elif startswith(frames.OK_TRAILERS, payload):
                        del calls[stream]
                        record.status[call], record.received[call] = frames.OK, now
                    else:
                        self._end_with_trailers(stream, flags, bytes(buffer[payload:after]), now)
            else:
                self._control(kind, flags, stream, bytes(buffer[payload:after]), now)
            at = after
        self._filled = end - at
        if self._filled:
            buffer[: self._filled] = buffer[at:end]
            if self._filled == BUFFER_BYTES:
                raise frames.ProtocolError(f"a frame that is no data is larger than {BUFFER_BYTES} bytes")
        if self._credit > CREDIT_BYTES:
            self._out.append(frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.WORD.pack(self._credit)))
            self._credit = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, now: float) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._out += self._uploads.widen(stream, frames.WORD.unpack(payload)[0])
        elif kind == frames.PING and not flags & frames.ACK:
            self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._settle(dict(frames.SETTING.iter_unpack(payload)))
        elif kind == frames.RST_STREAM and stream in self.calls:
            self._end_with_reset(stream, frames.WORD.unpack(payload)[0], now)
        elif kind == frames.GOAWAY:
            self.is_open = False
            last = frames.WORD.unpack_from(payload)[0]
            for each in [each for each in self.calls if each > last]:
                self._end(each, frames.UNAVAILABLE, now)
        elif kind == frames.CONTINUATION:
            raise frames.ProtocolError("headers are longer than a frame, which this client does not read")

    def _settle(self, settings: dict[int, int]) -> None:
        unlimited = frames.MAX_WINDOW if not self._is_greeted else self.max_calls
        self.max_calls = settings.get(frames.MAX_CONCURRENT_STREAMS, unlimited)
        self._is_greeted = True
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._out += self._uploads.settle(
            stream_window=settings.get(frames.INITIAL_WINDOW_SIZE, self._uploads.stream_window),
            max_frame=settings.get(frames.MAX_FRAME_SIZE, self._uploads.max_frame),
        )

    def _end_with_trailers(self, stream: int, flags: int, block: bytes, now: float) -> None:
        _refuse_padding(flags)
        fields = frames.read_fields(block)
        pushback = fields.get(b"grpc-retry-pushback-ms")
        if pushback is not None:
            self._record.pushback_ms[self.calls[stream]] = int(pushback)
        self._end(stream, int(fields.get(b"grpc-status", frames.UNKNOWN)), now)

    def _end_with_reset(self, stream: int, code: int, now: float) -> None:
        # gRPC's server counts a call for a while after its trailers: at the limit the next one may come too early.
        if code == frames.REFUSED_STREAM and self.max_calls > 1:
            self.max_calls -= 1
            self.refused.append(self.calls[stream])
        status = frames.STATUS_OF_RESET.get(code, frames.INTERNAL)
        # The server resets a call whose deadline is over as if it had been cancelled; gRPC's clients tell them apart.
        timeout_s = math.inf if self._timeout_s is None else self._timeout_s
        if status == frames.CANCELLED and now >= self._record.sent[self.calls[stream]] + timeout_s:
            status = frames.DEADLINE_EXCEEDED
        self._end(stream, status, now)

    def _end(self, stream: int, status: int, now: float) -> None:
        call = self.calls.pop(stream)
        self._record.status[call], self._record.received[call] = status, now
        if self._uploads.waiting and self._uploads.drop(stream):
            self._out.append(frames.frame(frames.RST_STREAM, 0, stream, frames.WORD.pack(frames.CANCEL)))

    def _lose(self, now: float) -> None:
        self.is_open = False
        self._unsent = memoryview(b"")
        self._out.clear()
        for stream in list(self.calls):
            self._end(stream, frames.LOST, now)
        self._socket.close()


def _refuse_padding(flags: int) -> None:
    if flags & frames.PADDED:
        raise frames.ProtocolError("a frame is padded; gRPC's core pads none")
