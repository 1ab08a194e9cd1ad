"""EmbedStream: many requests in flight, answers in order, memory bounded by a window."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from embedmux.proto import embed_pb2
from embedmux.server.errors import InvalidRequest, Unavailable
from embedmux.server.rpc import convert, status
from embedmux.server.rpc.calls import Call, is_caller_gone
from embedmux.server.rpc.lifecycle import Lifecycle

Answer = bytes | embed_pb2.EmbedResponse


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request that was read and whose answer was not written yet."""

    answer: asyncio.Task[Answer]
    num_texts: int


class Held:
    """Texts between reading and writing in all streams together; beyond ``max_texts`` a stream holds one request."""

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts
        self._num_texts = 0
        self._waiting: set[asyncio.Event] = set()

    def has_room(self, num_texts: int) -> bool:
        """Whether a stream that holds something may hold so many more."""
        return self._num_texts + num_texts <= self._max_texts

    def add(self, num_texts: int) -> None:
        """So many came, or, with a minus, went; then streams that wait look again."""
        self._num_texts += num_texts
        if num_texts < 0:
            for event in self._waiting:
                event.set()

    async def wait(self, event: asyncio.Event) -> None:
        """Until the stream's own event, or until texts went in any stream."""
        event.clear()
        self._waiting.add(event)
        try:
            await event.wait()
        finally:
            self._waiting.discard(event)


class AnswerStream:
    """One stream. A request enters the window when it is read and leaves it when its answer is written.

    Writing waits for the client to take what was written before, so a client that does not read fills its own window;
    then nothing more is read from it. Many such clients fill what all streams may hold (``Held``), and have a window
    of one request then.
    """

    def __init__(
        self,
        call: Call,
        embed: Callable[[embed_pb2.EmbedRequest, Call], Awaitable[bytes]],
        *,
        max_requests: int,
        max_texts: int,
        held: Held,
    ) -> None:
        self._call = call
        self._embed = embed
        self._held = held
        self._max_requests = max_requests
        self._max_texts = max_texts
        self._window: deque[_Pending] = deque()
        self._num_texts = 0
        self._arrived = asyncio.Event()
        self._left = asyncio.Event()

    async def run(self, lifecycle: Lifecycle) -> None:
        """Answers until the client has sent all, or until the server drains: then what was read is still answered."""
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(lambda _: self._arrived.set())

        def stop_reading() -> None:
            if lifecycle.is_closing:
                reader.cancel()

        try:
            with lifecycle.listening(stop_reading):
                stop_reading()
                num_answered = await self._write(reader)
            if reader.cancelled():
                raise Unavailable(
                    f"the server is {lifecycle.state.value}; the first {num_answered} requests of this stream were "
                    "answered, send the others on a new connection"
                )
            reader.result()
        finally:
            self._held.add(-self._num_texts)
            await _end([reader, *(pending.answer for pending in self._window)])

    async def _read(self) -> None:
        while True:
            await self._room_for(0)
            request = await self._call.context.read()
            if request is grpc.aio.EOF:
                return
            num_texts = 0 if isinstance(request, InvalidRequest) else len(request.texts)
            await self._room_for(num_texts)
            self._window.append(_Pending(asyncio.create_task(self._answer(request)), num_texts))
            self._num_texts += num_texts
            self._held.add(num_texts)
            self._arrived.set()

    async def _room_for(self, num_texts: int) -> None:
        while self._window and (
            len(self._window) >= self._max_requests
            or self._num_texts + num_texts > self._max_texts
            or not self._held.has_room(num_texts)
        ):
            await self._held.wait(self._left)

    async def _write(self, reader: asyncio.Task[None]) -> int:
        num_answered = 0
        while True:
            while not self._window:
                if reader.done():
                    return num_answered
                self._arrived.clear()
                await self._arrived.wait()
            pending = self._window[0]
            await self._call.context.write(await pending.answer)
            self._window.popleft()
            self._num_texts -= pending.num_texts
            self._held.add(-pending.num_texts)
            self._left.set()
            num_answered += 1

    async def _answer(self, request: Any) -> Answer:
        try:
            if isinstance(request, InvalidRequest):
                raise request
            return await self._embed(request, self._call)
        except (Exception, asyncio.CancelledError) as error:
            if is_caller_gone(error):
                raise
            refusal = status.refusal(error, method=self._call.method, call_id=self._call.id)
            return convert.failure_reply(refusal, request_id=getattr(request, "request_id", ""))


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancels what still runs and waits for it; what the tasks raise now is of no use to anyone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
