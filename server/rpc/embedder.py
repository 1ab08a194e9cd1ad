"""The Embedder service."""

from typing import Any, ClassVar

from embedmux.proto import embed_pb2
from embedmux.server.rpc import convert
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.ports import Encoder
from embedmux.server.rpc.stream import AnswerStream, Held


class Embedder:
    """Embed, EmbedStream and Tokenize.

    A stream keeps at most ``max_stream_requests`` requests with ``max_stream_texts`` texts between reading and
    writing; one request with more texts than that runs alone. All streams together keep ``max_held_texts``, and beyond
    that one request each.
    """

    SERVICE: ClassVar[Any] = embed_pb2.DESCRIPTOR.services_by_name["Embedder"]
    NEEDS_ENGINE: ClassVar[bool] = True

    def __init__(
        self,
        encoder: Encoder,
        lifecycle: Lifecycle,
        *,
        max_stream_requests: int = 8,
        max_stream_texts: int = 1024,
        max_held_texts: int = 65_536,
    ) -> None:
        self._encoder = encoder
        self._lifecycle = lifecycle
        self._max_stream_requests = max_stream_requests
        self._max_stream_texts = max_stream_texts
        self._held = Held(max_held_texts)

    async def Embed(self, request: embed_pb2.EmbedRequest, call: Call) -> bytes:
        """A serialised EmbedResponse."""
        call.notes.num_texts += len(request.texts)
        job = convert.embed_job(request, terms=call.terms)
        result = await self._encoder.embed(job)
        return convert.embed_reply(result, request_id=request.request_id, outputs=job.outputs)

    async def EmbedStream(self, _: Any, call: Call) -> None:
        """Answers in the order of the requests."""
        stream = AnswerStream(
            call,
            self.Embed,
            max_requests=self._max_stream_requests,
            max_texts=self._max_stream_texts,
            held=self._held,
        )
        await stream.run(self._lifecycle)

    async def Tokenize(self, request: embed_pb2.TokenizeRequest, call: Call) -> embed_pb2.TokenizeResponse:
        """Token ids of each text."""
        call.notes.num_texts += len(request.texts)
        job = convert.tokenize_job(request, terms=call.terms)
        return convert.tokenize_reply(await self._encoder.tokenize(job))
