"""What answers clients: the services over a linked engine. In the server's own process, and in those beside it."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from embedmux.server.bridge.linked import Linked
from embedmux.server.bridge.load import load_of
from embedmux.server.config import ServeConfig
from embedmux.server.desk import Desk, conduct, open_models
from embedmux.server.facts import ServedModel, ServerInfo, ServerLimits, ServerState
from embedmux.server.metrics.counters import FrontCounters
from embedmux.server.rpc.access import AccessLog
from embedmux.server.rpc.adapters import Adapters
from embedmux.server.rpc.calls import Watcher
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.info import Info
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.orca import LoadReports
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import RpcServer, Service, TransportOptions, build_server

if TYPE_CHECKING:
    from embedmux.server.rpc.traces import Traces

VERSION = importlib.metadata.version("embedmux")


class Front:
    """Models, tokenizers and services of one process; ``lifecycle`` is its state. Raises ModelRejected."""

    def __init__(self, config: ServeConfig, engines: Linked) -> None:
        self.config = config
        self.lifecycle = Lifecycle()
        self.counters = FrontCounters()
        self.served = open_models(config, engines)
        self.desk = Desk(self.served)
        self._engines = engines
        self._traces: Traces | None = None

    def listen(self, address: str) -> RpcServer:
        """A server of all services, bound and not yet started; call it where the event loop runs. Raises OSError."""
        limits = self.config.limits
        models = conduct(self.served, limits, self.counters.of_model)
        services: list[Service] = [
            Embedder(
                models,
                self.lifecycle,
                max_stream_requests=limits.max_stream_requests,
                max_stream_texts=limits.max_stream_texts,
                max_held_texts=limits.max_held_texts,
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
        reports = self._load_reports()
        watchers = [*self._watchers(), *([reports] if reports is not None else [])]
        return build_server(
            services, self.lifecycle, options=options, observer=self.counters, watchers=watchers, reports=reports
        )

    def _load_reports(self) -> LoadReports | None:
        if self.config.orca == "never":
            return None
        return LoadReports(lambda: load_of(self._engines), sends_always=self.config.orca == "always")

    def _watchers(self) -> list[Watcher]:
        """Who looks at every call that has ended."""
        found: list[Watcher] = []
        if self.config.log_calls != "none":
            found.append(AccessLog(logs_all=self.config.log_calls == "all"))
        if self.config.traces is not None:
            from embedmux.server.rpc import traces  # noqa: PLC0415 - only who asks for traces loads OpenTelemetry

            self._traces = traces.exporting(self.config.traces, version=VERSION, ratio=self.config.trace_ratio)
            found.append(self._traces)
        return found

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
        return self.counters.as_dict()

    def close(self) -> None:
        """Ends the tokenizers' threads, and sends the last traces."""
        if self._traces is not None:
            self._traces.close()
        for model in self.served:
            model.tokenizer.close()
