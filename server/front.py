"""What answers clients: the services over a linked engine. In the server's own process, and in those beside it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from embedmux.server.bridge.linked import Linked
from embedmux.server.config import ServeConfig
from embedmux.server.desk import Desk, conduct, open_models
from embedmux.server.facts import ServedModel, ServerInfo, ServerLimits, ServerState
from embedmux.server.rpc.adapters import Adapters
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.info import Info
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import RpcServer, Service, TransportOptions, build_server

VERSION = importlib.metadata.version("embedmux")


class Front:
    """Models, tokenizers and services of one process; ``lifecycle`` is its state. Raises ModelRejected."""

    def __init__(self, config: ServeConfig, engines: Linked) -> None:
        self.config = config
        self.lifecycle = Lifecycle()
        self.served = open_models(config, engines)
        self.desk = Desk(self.served)

    def listen(self, address: str) -> RpcServer:
        """A server of all services, bound and not yet started; call it where the event loop runs. Raises OSError."""
        limits = self.config.limits
        models = conduct(self.served, limits)
        services: list[Service] = [
            Embedder(
                models,
                self.lifecycle,
                max_stream_requests=limits.max_stream_requests,
                max_stream_texts=limits.max_stream_texts,
            ),
            Reranker(models, self),
            Adapters(self.desk),
            Info(self),
        ]
        options = TransportOptions(
            addresses=(address,),
            max_message_bytes=limits.max_message_bytes,
            max_connection_age_s=self.config.max_connection_age_s,
            reuse_port=self.config.frontends > 1,
        )
        return build_server(services, self.lifecycle, options=options)

    def describe(self) -> ServerInfo:
        """What Server.Info answers; no models while the engine is not ready."""
        limits = self.config.limits
        served: tuple[ServedModel, ...] = ()
        if self.lifecycle.state in (ServerState.SERVING, ServerState.DRAINING):
            served = self.desk.models()
        return ServerInfo(
            version=VERSION,
            state=self.lifecycle.state,
            models=served,
            limits=ServerLimits(
                max_texts=limits.max_texts,
                max_text_bytes=limits.max_text_bytes,
                max_batch_tokens=self.config.engine.max_batch_tokens,
                max_queue_tokens=self.config.engine.max_queue_tokens,
                max_message_bytes=limits.max_message_bytes,
            ),
        )

    def counted(self) -> dict[str, Any]:
        """What this process counted, for metrics."""
        return {}

    def close(self) -> None:
        """Ends the tokenizers' threads."""
        for model in self.served:
            model.tokenizer.close()
