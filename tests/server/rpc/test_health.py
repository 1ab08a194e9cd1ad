"""grpc.health.v1 follows the Lifecycle."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedmux.server.facts import ServerState
from embedmux.server.rpc.health import Health
from embedmux.server.rpc.lifecycle import Lifecycle

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["embedmux.v1.Adapters", "embedmux.v1.Embedder", "embedmux.v1.Reranker", "embedmux.v1.Server"]


def health_of(running) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(running.channel)


@pytest.mark.parametrize(
    ("state", "engine", "info"),
    [
        (ServerState.STARTING, NOT_SERVING, SERVING),
        (ServerState.SERVING, SERVING, SERVING),
        (ServerState.RESTARTING, NOT_SERVING, SERVING),
        (ServerState.DRAINING, NOT_SERVING, NOT_SERVING),
        (ServerState.STOPPED, NOT_SERVING, NOT_SERVING),
    ],
)
def test_health_says_what_the_state_means_for_each_service(state, engine, info):
    lifecycle = Lifecycle()
    lifecycle.set(state)
    health = Health(lifecycle, {"Embedder": True, "Server": False})
    assert [health._status(name) for name in ("", "Embedder", "Server")] == [engine, engine, info]


async def test_check_follows_the_state(running):
    health = health_of(running)
    for state, expected in ((ServerState.RESTARTING, NOT_SERVING), (ServerState.SERVING, SERVING)):
        running.lifecycle.set(state)
        for service in ("", "embedmux.v1.Embedder"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == expected


async def test_check_of_an_unknown_service_names_the_known_ones(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(running).Check(health_pb2.HealthCheckRequest(service="embedmux.v1.Nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (
        "embedmux.v1.Adapters, embedmux.v1.Embedder, embedmux.v1.Reranker, embedmux.v1.Server" in caught.value.details()
    )


async def test_watch_tells_each_change_and_ends_when_the_server_stops(running):
    call = health_of(running).Watch(health_pb2.HealthCheckRequest(service="embedmux.v1.Embedder"))
    unknown = health_of(running).Watch(health_pb2.HealthCheckRequest(service="nothing"))
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert (await call.read()).status == SERVING
    for state, expected in (
        (ServerState.RESTARTING, NOT_SERVING),
        (ServerState.SERVING, SERVING),
        (ServerState.DRAINING, NOT_SERVING),
    ):
        running.lifecycle.set(state)
        assert (await call.read()).status == expected
    await asyncio.wait_for(running.server.stop(grace_s=30), 10)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_list_gives_every_service(running):
    reply = await health_of(running).List(health_pb2.HealthListRequest())
    assert {name: status.status for name, status in reply.statuses.items()} == dict.fromkeys(
        ["", "grpc.health.v1.Health", *SERVICES], SERVING
    )


def test_a_draining_server_is_not_reopened():
    lifecycle = Lifecycle()
    lifecycle.set(ServerState.DRAINING)
    lifecycle.set(ServerState.SERVING)
    assert lifecycle.state is ServerState.DRAINING
