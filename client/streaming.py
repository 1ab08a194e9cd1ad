"""The sending half of an EmbedStream: a bounded number of requests on their way, and none lost from sight."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence

from embedmux.client.errors import UnexpectedReply, failure_error
from embedmux.client.texts import EmbedOptions, Text, as_texts, embed_request
from embedmux.proto import embed_pb2
from embedmux.server.errors import EmbedmuxError, InvalidRequest, Overloaded, Unavailable

Batch = str | Sequence[str | Text]


class RequestFeed:
    """Requests for a blocking stream. gRPC reads it in a thread of its own, at most ``window`` ahead of the answers."""

    def __init__(self, batches: Iterable[Batch], options: EmbedOptions, window: int) -> None:
        self._requests = (stream_request(batch, options) for batch in batches)
        self._free = threading.Semaphore(window)
        self._sent: deque[embed_pb2.EmbedRequest] = deque()
        self._is_closed = False
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[embed_pb2.EmbedRequest]:
        return self

    def __next__(self) -> embed_pb2.EmbedRequest:
        """The next request, once fewer than ``window`` are unanswered."""
        self._free.acquire()
        if self._is_closed:
            raise StopIteration
        try:
            request = next(self._requests)
        except StopIteration:
            raise
        except BaseException as error:
            # Raised here it would only be logged by gRPC's thread; the reader raises it after the last answer.
            self.failure = error
            raise StopIteration from None
        self._sent.append(request)
        return request

    def answered(self) -> embed_pb2.EmbedRequest:
        """The oldest unanswered request; makes room for another."""
        request = oldest(self._sent)
        self._free.release()
        return request

    def finish(self) -> None:
        """Raises what went wrong while sending, if anything, or if the stream ended too early."""
        finish(self.failure, len(self._sent))

    def close(self) -> None:
        """Sends nothing more, and frees gRPC's thread if it waits for room."""
        self._is_closed = True
        self._free.release()


class AsyncRequestFeed:
    """The same for asyncio; ``batches`` may be an ordinary or an asynchronous iterable."""

    def __init__(self, batches: Iterable[Batch] | AsyncIterable[Batch], options: EmbedOptions, window: int) -> None:
        self._batches = batches
        self._options = options
        self._free = asyncio.Semaphore(window)
        self._sent: deque[embed_pb2.EmbedRequest] = deque()
        self.failure: BaseException | None = None

    async def requests(self) -> AsyncIterator[embed_pb2.EmbedRequest]:
        """Each request, once fewer than ``window`` are unanswered."""
        try:
            await self._free.acquire()
            async for batch in as_async(self._batches):
                request = stream_request(batch, self._options)
                self._sent.append(request)
                yield request
                await self._free.acquire()
        except Exception as error:
            self.failure = error

    def answered(self) -> embed_pb2.EmbedRequest:
        """The oldest unanswered request; makes room for another."""
        request = oldest(self._sent)
        self._free.release()
        return request

    def finish(self) -> None:
        """Raises what went wrong while sending, if anything, or if the stream ended too early."""
        finish(self.failure, len(self._sent))


def stream_request(batch: Batch, options: EmbedOptions) -> embed_pb2.EmbedRequest:
    """The request of one batch."""
    texts = as_texts(batch)
    if not texts:
        raise InvalidRequest("a batch of the stream has no texts; leave empty batches out")
    return embed_request(texts, options)


def is_worth_repeating(reply: embed_pb2.EmbedResponse) -> bool:
    """Whether the request of ``reply`` should be sent again; raises its failure if that would not help.

    The stream cannot repeat one request, so it is sent again as a single call, where gRPC waits as the server asks.
    """
    if not reply.HasField("failure"):
        return False
    error: EmbedmuxError = failure_error(reply.failure)
    if isinstance(error, Overloaded | Unavailable):
        return True
    raise error


def oldest(sent: deque[embed_pb2.EmbedRequest]) -> embed_pb2.EmbedRequest:
    """The request the next reply belongs to."""
    if not sent:
        raise UnexpectedReply("the stream answered more requests than were sent")
    return sent.popleft()


def finish(failure: BaseException | None, num_unanswered: int) -> None:
    """What both feeds do when the server has closed the stream."""
    if failure is not None:
        raise failure
    if num_unanswered:
        raise UnexpectedReply(f"the stream ended with {num_unanswered} requests unanswered")


async def as_async(batches: Iterable[Batch] | AsyncIterable[Batch]) -> AsyncIterator[Batch]:
    """``batches`` as an asynchronous iterator."""
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch
