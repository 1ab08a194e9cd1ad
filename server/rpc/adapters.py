"""The Adapters service."""

from typing import Any, ClassVar

from embedmux.proto import adapters_pb2
from embedmux.server.errors import InvalidRequest
from embedmux.server.records import Placement
from embedmux.server.rpc import describe
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.ports import AdapterDesk


class Adapters:
    """Load, Unload and List."""

    SERVICE: ClassVar[Any] = adapters_pb2.DESCRIPTOR.services_by_name["Adapters"]
    NEEDS_ENGINE: ClassVar[bool] = True

    def __init__(self, desk: AdapterDesk) -> None:
        self._desk = desk

    async def Load(self, request: adapters_pb2.LoadAdapterRequest, _: Call) -> adapters_pb2.AdapterInfo:
        """The adapter, once texts may use it."""
        if not request.path:
            raise InvalidRequest("path is empty; name a folder below the server's adapter root")
        placement = request.placement or None
        if placement not in (None, *(each.value for each in Placement)):
            raise InvalidRequest(f"placement is {placement!r}; it must be low-rank or merged, or empty for the default")
        loaded = await self._desk.load(request.path, request.id or None, request.model or None, placement)
        return describe.adapter_info(loaded)

    async def Unload(self, request: adapters_pb2.UnloadAdapterRequest, _: Call) -> adapters_pb2.UnloadAdapterResponse:
        """Nothing, once no new text may use the adapter."""
        if not request.id:
            raise InvalidRequest("id is empty; Adapters.List names the loaded adapters")
        await self._desk.unload(request.id, request.model or None)
        return adapters_pb2.UnloadAdapterResponse()

    async def List(self, request: adapters_pb2.ListAdaptersRequest, _: Call) -> adapters_pb2.ListAdaptersResponse:
        """Every loaded adapter, of one model or of all."""
        adapters = [describe.adapter_info(adapter) for adapter in self._desk.list(request.model or None)]
        return adapters_pb2.ListAdaptersResponse(adapters=adapters)
