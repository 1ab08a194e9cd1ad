"""What a server's windows let through: most messages at once, the others piece by piece."""

from dataclasses import dataclass

from harness.http2 import frames


@dataclass(slots=True)
class Upload:
    """The rest of a message, and how much of it the stream's own window allows."""

    left: memoryview
    window: int


class Uploads:
    """The send windows of one connection and the messages that wait for them.

    ``window`` is the connection's, ``stream_window`` that of a new stream, both in bytes.
    """

    def __init__(self) -> None:
        self.window = self.stream_window = frames.DEFAULT_WINDOW
        self.max_frame = 16384
        self.waiting: dict[int, Upload] = {}  # by stream, the oldest first

    def has_room(self, size: int) -> bool:
        """Whether a message of so many bytes fits into one frame now, with nobody before it."""
        return size <= self.window and size <= self.stream_window and size <= self.max_frame and not self.waiting

    def add(self, stream: int, message: bytes) -> list[bytes | memoryview]:
        """A new stream's message; returns what may be written now."""
        self.waiting[stream] = Upload(memoryview(message), self.stream_window)
        return self.go_on()

    def drop(self, stream: int) -> bool:
        """Forgets a stream's message; returns whether it was still waiting."""
        return self.waiting.pop(stream, None) is not None

    def widen(self, stream: int, size: int) -> list[bytes | memoryview]:
        """More window for a stream, or for the connection as stream 0; returns what may be written now."""
        if stream == 0:
            self.window += size
        elif stream in self.waiting:
            self.waiting[stream].window += size
        return self.go_on() if self.waiting else []

    def settle(self, *, stream_window: int, max_frame: int) -> list[bytes | memoryview]:
        """The server's settings, which also move the windows of streams that wait; what may be written now."""
        for upload in self.waiting.values():
            upload.window += stream_window - self.stream_window
        self.stream_window, self.max_frame = stream_window, max_frame
        return self.go_on()

    def go_on(self) -> list[bytes | memoryview]:
        """As much of the waiting messages as the windows allow, the oldest first."""
        out: list[bytes | memoryview] = []
        done = []
        for stream, upload in self.waiting.items():
            while (size := min(len(upload.left), upload.window, self.window, self.max_frame)) > 0:
                is_last = size == len(upload.left)
                out += (frames.HEAD.pack(size << 8 | frames.DATA, int(is_last), stream), upload.left[:size])
                upload.left = upload.left[size:]
                upload.window -= size
                self.window -= size
            if not upload.left:
                done.append(stream)
            if self.window <= 0:
                break
        for stream in done:
            del self.waiting[stream]
        return out
