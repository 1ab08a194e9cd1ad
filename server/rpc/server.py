"""Services -> a gRPC server that listens."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from embedmux.server.facts import ServerState
from embedmux.server.rpc.calls import Calls, Reports, Watcher
from embedmux.server.rpc.decode import decoder
from embedmux.server.rpc.health import Health
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.ports import CallObserver, Unobserved

HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
NO_LIMIT = 1 << 62
MOST_PENDING = 1 << 20


class Service(Protocol):
    """A servicer: ``SERVICE`` is its proto descriptor, and each of its methods is a coroutine of (request, call)."""

    SERVICE: ClassVar[Any]
    NEEDS_ENGINE: ClassVar[bool]


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """How the server listens. Addresses are ``host:port`` (0: any free port) or ``unix:path``."""

    addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    max_message_bytes: int = 64 << 20
    max_calls: int = 4096
    max_calls_per_connection: int = 1024
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    # gRPC's own limit of one ping in five minutes cuts off clients that keep their connection alive through a proxy.
    min_client_ping_s: float = 5.0
    max_connection_age_s: float | None = None
    max_connection_age_grace_s: float = 30.0
    # Several front processes share a port only on purpose; otherwise a second server must fail to start.
    reuse_port: bool = False

    def channel_arguments(self) -> list[tuple[str, int]]:
        """These options in gRPC's words."""
        arguments = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self.max_calls_per_connection),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", round(self.min_client_ping_s * 1000)),
            ("grpc.so_reuseport", int(self.reuse_port)),
            # gRPC's core cancels what waits for this process beyond 1000 calls, at random and without a word to us or a
            # time to retry; max_calls refuses in their place.
            ("grpc.server.max_pending_requests", MOST_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        ]
        if self.max_connection_age_s is not None:
            arguments.append(("grpc.max_connection_age_ms", round(self.max_connection_age_s * 1000)))
            arguments.append(("grpc.max_connection_age_grace_ms", round(self.max_connection_age_grace_s * 1000)))
        return arguments


@dataclass(frozen=True, slots=True)
class RpcServer:
    """A server whose ``ports`` are bound, in the order of the addresses; 0 stands for a unix socket."""

    ports: tuple[int, ...]
    lifecycle: Lifecycle
    _server: Any = field(repr=False)

    async def start(self) -> None:
        """Accepts calls from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Drains: no new calls, accepted ones have ``grace_s`` seconds to end, then they are cancelled."""
        self.lifecycle.set(ServerState.DRAINING)
        self.lifecycle.set(ServerState.STOPPED)
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


def build_server(
    services: Sequence[Service],
    lifecycle: Lifecycle,
    *,
    options: TransportOptions,
    observer: CallObserver | None = None,
    watchers: Sequence[Watcher] = (),
    reports: Reports | None = None,
    interceptors: Sequence[Any] = (),
) -> RpcServer:
    """All services, health and reflection on bound addresses; call it where the event loop runs.

    Raises OSError for an address that cannot be bound.
    """
    server = grpc.aio.server(options=options.channel_arguments(), interceptors=interceptors)
    calls = Calls(observer or Unobserved(), max_calls=options.max_calls, watchers=watchers, reports=reports)
    names = {service.SERVICE.full_name: service.NEEDS_ENGINE for service in services}
    # Health answers under load too: a probe that fails there would take a busy server out of service.
    health = Health(lifecycle, names)
    unlimited = Calls(Unobserved(), max_calls=NO_LIMIT)
    handlers = [*(_handlers(service, calls) for service in services), _handlers(health, unlimited)]
    # One generic table, not registered methods: grpc.aio waits on a task for each of those at every call.
    server.add_generic_rpc_handlers(tuple(handlers))
    names_shown = [*names, Health.SERVICE.full_name, reflection.SERVICE_NAME]
    server.add_generic_rpc_handlers((_reflection(names_shown),))
    return RpcServer(tuple(_bind(server, address) for address in options.addresses), lifecycle, server)


def _handlers(service: Service, calls: Calls) -> Any:
    table = {}
    for method in service.SERVICE.methods:
        if not hasattr(service, method.name):
            continue  # gRPC answers UNIMPLEMENTED: a newer grpcio-health-checking may know methods that Health does not
        make = HANDLERS[method.client_streaming, method.server_streaming]
        guarded = calls.guard(f"{service.SERVICE.name}/{method.name}", getattr(service, method.name))
        table[method.name] = make(
            guarded, request_deserializer=decoder(method.input_type), response_serializer=_serialize
        )
    return grpc.method_handlers_generic_handler(service.SERVICE.full_name, table)


def _serialize(reply: Any) -> Any:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _reflection(names: Sequence[str]) -> Any:
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})


def _bind(server: Any, address: str) -> int:
    if address.startswith("unix:"):
        _refuse_served_socket(address)
    try:
        port: int = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"address {address!r} cannot be bound; it may be taken, choose another one or free it") from error
    return 0 if address.startswith("unix:") else port


def _refuse_served_socket(address: str) -> None:
    """gRPC removes an existing socket file before it binds, and so would silently take over a running server's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address.removeprefix("unix:").removeprefix("//"))
        except OSError:
            return
    raise OSError(f"address {address!r} is served by another process; stop it or choose another path")
