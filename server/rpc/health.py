"""grpc.health.v1, read straight from the Lifecycle.

The servicer of grpcio-health-checking is not used, only its protocol: it says that "" serves until told otherwise, and
its Watch calls stay open through a drain, so that stopping would always take the whole grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from grpc_health.v1 import health_pb2

from embedmux.server.errors import NotFound, Unavailable
from embedmux.server.facts import ServerState
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.lifecycle import Lifecycle

Status = health_pb2.HealthCheckResponse


class Health:
    """Check and Watch for each service by name and for the server as a whole under "", List for all of them.

    What needs the engine serves only while the state is SERVING; everything else until the server drains.
    """

    SERVICE: ClassVar[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
    NEEDS_ENGINE: ClassVar[bool] = False

    def __init__(self, lifecycle: Lifecycle, needs_engine: Mapping[str, bool]) -> None:
        self._lifecycle = lifecycle
        self._needs_engine = {"": True, self.SERVICE.full_name: False, **needs_engine}

    async def Check(self, request: health_pb2.HealthCheckRequest, _: Call) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in self._needs_engine:
            known = ", ".join(sorted(name for name in self._needs_engine if name))
            raise NotFound(f"service {request.service!r} is not on this server; it has {known}")
        return Status(status=self._status(request.service))

    async def List(self, _: health_pb2.HealthListRequest, __: Call) -> health_pb2.HealthListResponse:
        """The status of every service now."""
        statuses = {service: Status(status=self._status(service)) for service in self._needs_engine}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        """The status now and after each change, until the server stops."""
        changed = asyncio.Event()
        with self._lifecycle.listening(changed.set):
            last = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    await call.context.write(Status(status=status))
                    last = status
                if self._lifecycle.state is ServerState.STOPPED:
                    raise Unavailable("the server has stopped; watch on a new connection")
                await changed.wait()

    def _status(self, service: str) -> int:
        needs_engine = self._needs_engine.get(service)
        if needs_engine is None:
            unknown: int = Status.SERVICE_UNKNOWN
            return unknown
        serves = self._lifecycle.state is ServerState.SERVING if needs_engine else not self._lifecycle.is_closing
        status: int = Status.SERVING if serves else Status.NOT_SERVING
        return status
