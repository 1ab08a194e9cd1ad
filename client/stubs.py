"""The generated stubs of every service the clients call, over one channel, blocking or asyncio."""

from dataclasses import dataclass
from typing import Any

from grpc_health.v1 import health_pb2_grpc

from embedmux.proto import adapters_pb2_grpc, embed_pb2_grpc, rerank_pb2_grpc, server_pb2_grpc


@dataclass(frozen=True, slots=True)
class Stubs:
    """Generated code carries no types, hence Any."""

    embedder: Any
    reranker: Any
    adapters: Any
    server: Any
    health: Any


def make_stubs(channel: Any) -> Stubs:
    """Stubs over ``channel``, which stays the caller's to close."""
    kinds: tuple[Any, ...] = (
        embed_pb2_grpc.EmbedderStub,
        rerank_pb2_grpc.RerankerStub,
        adapters_pb2_grpc.AdaptersStub,
        server_pb2_grpc.ServerStub,
        health_pb2_grpc.HealthStub,
    )
    return Stubs(*(kind(channel) for kind in kinds))
