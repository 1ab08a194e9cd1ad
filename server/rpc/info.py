"""The Server service."""

from typing import Any, ClassVar

from embedmux.proto import server_pb2
from embedmux.server.rpc import describe
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.ports import Facts


class Info:
    """Info answers in every state, so that a client can see what a server that does not serve is doing."""

    SERVICE: ClassVar[Any] = server_pb2.DESCRIPTOR.services_by_name["Server"]
    NEEDS_ENGINE: ClassVar[bool] = False

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    async def Info(self, _: server_pb2.InfoRequest, __: Call) -> server_pb2.InfoResponse:
        """Version, state, models, tasks and limits."""
        return describe.info_reply(self._facts.describe())
