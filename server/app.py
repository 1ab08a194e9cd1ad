"""The only builder: configuration -> objects -> serve -> drain. Never imports torch."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

from embedmux.server.beside import Beside, refuse_taken
from embedmux.server.bridge.supervisor import Supervisor
from embedmux.server.config import ServeConfig
from embedmux.server.facts import ServerState
from embedmux.server.front import VERSION, Front
from embedmux.server.metrics.counters import merged
from embedmux.server.metrics.ports import Sources

if TYPE_CHECKING:
    from embedmux.server.metrics.http import MetricsServer

logger = logging.getLogger(__name__)
ENGINE_DRAIN_S = 5.0  # for the engine to end once every call has been answered


class App:
    """One server: a front in this process, others beside it if asked for, and the engine it supervises."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.supervisor = Supervisor(
            config.engine,
            shared_memory_bytes=config.shared_memory_bytes,
            stuck_after_s=config.stuck_after_s,
            on_change=self._engine_changed,
        )
        self.front = Front(config, self.supervisor)

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises what keeps it from serving.

        The port answers before the model is loaded, so that health can say NOT_SERVING meanwhile.
        """
        if self.config.frontends > 1:
            refuse_taken(self.config.address)
        server = self.front.listen(self.config.address)
        address = f"{self.config.address.rpartition(':')[0]}:{server.ports[0]}"
        beside = Beside(self.config, address, self.supervisor.socket_path, self.supervisor.board_file)
        metrics = self._serve_metrics(beside)
        stop = _stop_on_signals()
        await server.start()
        beside.start()
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
            await asyncio.gather(server.stop(self.config.drain_s), beside.stop(self.config.drain_s))
            await self.supervisor.close(ENGINE_DRAIN_S)
            self.front.close()
            if metrics is not None:  # they tell of the drain too
                await asyncio.to_thread(metrics.close)
            logger.info("stopped")

    def _serve_metrics(self, beside: Beside) -> MetricsServer | None:
        """Metrics of all fronts and of the engine, where they are asked for."""
        if self.config.metrics_address is None:
            return None
        from embedmux.server.metrics.http import MetricsServer  # noqa: PLC0415 - only who asks for metrics loads them

        sources = Sources(
            version=VERSION,
            state=lambda: self.front.lifecycle.state,
            num_restarts=lambda: self.supervisor.num_restarts,
            counters=lambda: merged([self.front.counted(), *list(beside.reports.values())]),
            snapshot=lambda: self.supervisor.snapshot,
        )
        server = MetricsServer(self.config.metrics_address, sources)
        if self.config.metrics_port_file is not None:
            self.config.metrics_port_file.write_text(f"{server.port}\n", encoding="utf-8")
        logger.info("metrics on %s (port %d)", self.config.metrics_address, server.port)
        return server

    def _engine_changed(self, is_serving: bool) -> None:
        self.front.lifecycle.set(ServerState.SERVING if is_serving else ServerState.RESTARTING)

    def _announce(self, port: int, seconds: float) -> None:
        for model in self.supervisor.models:
            logger.info("%s (%s, %s) on %s, %s", model.name, model.family, model.kind, model.device, model.dtype)
        model = self.supervisor.models[0]
        logger.info("kernels (%s): %s", model.isa, ", ".join(f"{op} {by}" for op, by in model.backends.items()))
        for adapter in self.front.desk.list(None):
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
