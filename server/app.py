"""The only builder: configuration -> objects -> serve -> drain. Never imports torch."""

import asyncio
import importlib.metadata
import logging
import signal
import time

from embedmux.server.bridge.supervisor import Supervisor
from embedmux.server.config import ServeConfig
from embedmux.server.desk import Desk, conduct, open_models
from embedmux.server.facts import ServedModel, ServerInfo, ServerLimits, ServerState
from embedmux.server.rpc.adapters import Adapters
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.info import Info
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import Service, TransportOptions, build_server

logger = logging.getLogger(__name__)
ENGINE_DRAIN_S = 5.0  # for the engine to end once every call has been answered


class App:
    """One server: a front in this process and the engine it supervises."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.lifecycle = Lifecycle()
        self.supervisor = Supervisor(
            config.engine, shared_memory_bytes=config.shared_memory_bytes, on_change=self._engine_changed
        )
        self.served = open_models(config, self.supervisor)
        self.desk = Desk(self.served)

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises what keeps it from serving.

        The port answers before the model is loaded, so that health can say NOT_SERVING meanwhile.
        """
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
        options = TransportOptions(addresses=(self.config.address,), max_message_bytes=limits.max_message_bytes)
        server = build_server(services, self.lifecycle, options=options)
        stop = _stop_on_signals()
        await server.start()
        try:
            if self.config.port_file is not None:
                self.config.port_file.write_text(f"{server.ports[0]}\n", encoding="utf-8")
            started = time.monotonic()
            loading = asyncio.create_task(self.supervisor.start())
            await asyncio.wait([loading, stop], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._announce(server.ports[0], time.monotonic() - started)
                await stop
            loading.cancel()
        finally:
            logger.info("draining: accepted requests have up to %.1f s", self.config.drain_s)
            await server.stop(self.config.drain_s)
            await self.supervisor.close(ENGINE_DRAIN_S)
            for model in self.served:
                model.tokenizer.close()
            logger.info("stopped")

    def describe(self) -> ServerInfo:
        """What Server.Info answers; no models while the engine is not ready."""
        limits = self.config.limits
        served: tuple[ServedModel, ...] = ()
        if self.lifecycle.state in (ServerState.SERVING, ServerState.DRAINING):
            served = self.desk.models()
        return ServerInfo(
            version=importlib.metadata.version("embedmux"),
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

    def _engine_changed(self, is_serving: bool) -> None:
        self.lifecycle.set(ServerState.SERVING if is_serving else ServerState.RESTARTING)

    def _announce(self, port: int, seconds: float) -> None:
        for model in self.supervisor.models:
            logger.info("%s (%s, %s) on %s, %s", model.name, model.family, model.kind, model.device, model.dtype)
        model = self.supervisor.models[0]
        logger.info("kernels (%s): %s", model.isa, ", ".join(f"{op} {by}" for op, by in model.backends.items()))
        for adapter in self.desk.list(None):
            logger.info(
                "adapter %s of %s: task %s, rank %d", adapter.id, adapter.model, adapter.task or "-", adapter.max_rank
            )
        logger.info("loaded in %.1f s", seconds)
        logger.info("%s", self.config)
        logger.info("serving on %s (port %d)", self.config.address, port)


def _stop_on_signals() -> asyncio.Future[None]:
    """A future that SIGTERM and SIGINT resolve."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, resolve)
    return stop
