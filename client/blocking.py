"""The blocking client; it may be shared between threads. See aio.py for the same on asyncio."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from embedmux.client import records
from embedmux.client.errors import NOT_SERVING, call_error, not_serving_in_time
from embedmux.client.options import (
    COMPRESSIONS,
    DEFAULT_TIMEOUT_S,
    MAX_ATTEMPTS,
    Compression,
    PriorityName,
    call_metadata,
    channel_options,
)
from embedmux.client.rerank import Ranking, RerankOptions, ranking, rerank_request
from embedmux.client.streaming import Batch, RequestFeed, is_worth_repeating
from embedmux.client.stubs import make_stubs
from embedmux.client.texts import (
    EmbedOptions,
    ErrorPolicy,
    Text,
    TokenizeOptions,
    as_texts,
    embed_request,
    split_requests,
    tokenize_request,
)
from embedmux.client.vectors import Embeddings, by_policy, concatenate, decode, empty
from embedmux.proto import adapters_pb2, embed_pb2, server_pb2
from embedmux.server.errors import Unavailable


class Client:
    """A connection to an embedmux server; opened by the first call, closed by ``close`` or a ``with`` block.

    ``timeout`` is the default limit in seconds for each request, retries included. Lists longer than ``batch_size``
    texts go as several requests, ``in_flight`` at a time. ``metadata`` goes with every call, for example
    ``[("authorization", "Bearer ...")]``; ``credentials`` (``grpc.ssl_channel_credentials``) turn on TLS. ``tenant``
    and ``priority`` ("interactive" or "bulk", which takes what interactive work leaves) decide the place in its queue.
    Every method raises the exceptions of ``embedmux.server.errors``.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        batch_size: int = 64,
        in_flight: int = 4,
        max_attempts: int = MAX_ATTEMPTS,
        compression: Compression = "none",
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        tenant: str = "",
        priority: PriorityName = "interactive",
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._metadata = call_metadata(metadata, tenant, priority)
        options, compressed = channel_options(max_attempts=max_attempts), COMPRESSIONS[compression]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options, compressed)
        else:
            self._channel = grpc.secure_channel(target, credentials, options, compressed)
        self._stubs = make_stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is under way and closes the connection."""
        self._channel.close()

    def embed(
        self,
        texts: str | Text | Sequence[str | Text],
        *,
        errors: ErrorPolicy = "raise",
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """One vector for every text, in order.

        Options: task, role ("query" or "document"), adapter, prompt_name, prompt, instruction, dimensions,
        force_dimensions, encoding ("float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary"), outputs
        (some of "dense", "sparse", "tokens"), truncate ("none", "end", "start"), echo, model; see ``EmbedOptions``.
        A ``Text`` in the list may name its own task, role, adapter and prompt, so one call may mix tasks.
        ``errors="return"`` keeps failed texts in ``Embeddings.errors`` instead of raising the first.
        """
        texts = as_texts(texts)
        if not texts:
            return empty(options)
        if len(texts) <= self._batch_size:  # the common case; a plain call takes a quarter less time than a future
            reply = self._call(self._stubs.embedder.Embed, embed_request(texts, options), timeout)
            return by_policy(decode(reply, len(texts), options), errors)
        requests = split_requests(texts, options, batch_size=self._batch_size)
        return by_policy(concatenate(self._embed_all(requests, options, timeout)), errors)

    def embed_stream(
        self,
        batches: Iterable[Batch],
        *,
        window: int = 8,
        errors: ErrorPolicy = "raise",
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[Embeddings]:
        """The embeddings of each batch, in order, over one stream; options are those of ``embed``.

        ``batches`` is read in another thread and at most ``window`` batches ahead, so it may be endless. ``timeout``
        limits the whole stream, None sets no limit. A batch that is refused as a whole raises and ends the stream,
        except for overload or a restarting engine: then it is sent again when the server serves.
        """
        feed = RequestFeed(batches, options, window)
        call = self._stubs.embedder.EmbedStream(feed, timeout=timeout, metadata=self._metadata)
        try:
            for reply in call:
                request = feed.answered()
                if is_worth_repeating(reply):
                    reply = self._repeat(request)
                yield by_policy(decode(reply, len(request.texts), options), errors)
            feed.finish()
        except grpc.RpcError as error:
            raise call_error(error, self.target) from error
        finally:
            feed.close()
            call.cancel()

    def tokenize(
        self,
        texts: str | Text | Sequence[str | Text],
        *,
        errors: ErrorPolicy = "raise",
        timeout: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> list[records.TokenizedText]:
        """The token ids each text is embedded from; ``errors="return"`` sets ``TokenizedText.error`` instead."""
        reply = self._call(self._stubs.embedder.Tokenize, tokenize_request(as_texts(texts), options), timeout)
        return records.tokenized_texts(reply, errors)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        errors: ErrorPolicy = "raise",
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking:
        """The documents by how well they answer the query, best first, with raw logits and activated scores.

        Options: instruction, top_n, truncate ("none", "end", "start"), echo, model. All documents go in one request,
        since some models read them together. ``errors="return"`` keeps failed documents in ``Ranking.errors`` instead
        of raising the first.
        """
        request = rerank_request(query, documents, options)
        if not documents:
            return Ranking((), model=request.model)
        reply = self._call(self._stubs.reranker.Rerank, request, timeout)
        return ranking(reply, request, errors)

    def load_adapter(
        self,
        path: str,
        *,
        id: str | None = None,
        model: str | None = None,
        placement: str | None = None,
        timeout: float | None = None,
    ) -> records.AdapterInfo:
        """Loads the adapter folder ``path`` below the adapter root of ``model``; ``id`` None is the folder's name.

        ``placement``: "low-rank", "merged" (texts pay nothing for it, memory does) or None for the server's default.
        """
        request = adapters_pb2.LoadAdapterRequest(path=path, id=id or "", model=model or "", placement=placement or "")
        return records.adapter_info(self._call(self._stubs.adapters.Load, request, timeout))

    def unload_adapter(self, id: str, *, model: str | None = None, timeout: float | None = None) -> None:
        """Takes an adapter of ``model`` out of service; texts that already wait for it are still answered."""
        request = adapters_pb2.UnloadAdapterRequest(id=id, model=model or "")
        self._call(self._stubs.adapters.Unload, request, timeout)

    def adapters(self, *, model: str | None = None, timeout: float | None = None) -> list[records.AdapterInfo]:
        """The adapters in service, of one model or of all."""
        request = adapters_pb2.ListAdaptersRequest(model=model or "")
        reply = self._call(self._stubs.adapters.List, request, timeout)
        return [records.adapter_info(adapter) for adapter in reply.adapters]

    def info(self, *, timeout: float | None = None) -> records.ServerInfo:
        """What the server is and serves: models, tasks, prompts, spaces, limits."""
        return records.server_info(self._call(self._stubs.server.Info, server_pb2.InfoRequest(), timeout))

    def is_serving(self, *, timeout: float = 5.0) -> bool:
        """Whether the server answers and says that it serves."""
        try:
            reply = self._stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in NOT_SERVING:
                return False
            raise call_error(error, self.target) from error
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_serving(self, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Returns once the server serves, which may still be starting. Raises DeadlineExceeded after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            watch = self._stubs.health.Watch(
                health_pb2.HealthCheckRequest(), timeout=left, metadata=self._metadata, wait_for_ready=True
            )
            try:
                for reply in watch:
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.RpcError as error:
                if error.code() not in NOT_SERVING:
                    raise call_error(error, self.target) from error
            finally:
                watch.cancel()
        raise not_serving_in_time(self.target, timeout)

    def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        """One unary call."""
        try:
            return method(request, timeout=self._limit(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise call_error(error, self.target) from error

    def _repeat(self, request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
        """The reply to a request that a stream could not serve, once the server serves again; gRPC backs off."""
        patience = DEFAULT_TIMEOUT_S if self._timeout is None else self._timeout
        deadline = time.monotonic() + patience
        while True:
            self.wait_until_serving(patience)
            try:
                reply: embed_pb2.EmbedResponse = self._call(self._stubs.embedder.Embed, request)
            except Unavailable:
                # Health follows a lost engine a moment later, so a server may say that it serves and yet refuse.
                if time.monotonic() > deadline:
                    raise
            else:
                return reply

    def _embed_all(
        self, requests: Iterable[embed_pb2.EmbedRequest], options: EmbedOptions, timeout: float | None
    ) -> list[Embeddings]:
        """The embeddings of each request, in order; at most ``in_flight`` requests are under way."""
        parts: list[Embeddings] = []
        pending: deque[tuple[int, Any]] = deque()
        limit = self._limit(timeout)
        try:
            for request in requests:
                if len(pending) == self._in_flight:
                    num_texts, call = pending.popleft()
                    parts.append(decode(call.result(), num_texts, options))
                call = self._stubs.embedder.Embed.future(request, timeout=limit, metadata=self._metadata)
                pending.append((len(request.texts), call))
            while pending:
                num_texts, call = pending.popleft()
                parts.append(decode(call.result(), num_texts, options))
        except grpc.RpcError as error:
            raise call_error(error, self.target) from error
        finally:
            for _, call in pending:
                call.cancel()
        return parts

    def _limit(self, timeout: float | None) -> float | None:
        """The time limit of one request, in seconds."""
        return self._timeout if timeout is None else timeout
