"""How a client talks to its server: retries, keepalive, message sizes and compression, as gRPC channel options."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import grpc

# Every call of these services may be repeated: none changes more by running twice.
SERVICES = ("Embedder", "Reranker", "Similarity", "Collections", "Adapters", "Server")
DEFAULT_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 5  # gRPC core allows no more

# Servers count pings oftener than every 300 s as abuse and close the connection; common load balancers forget idle
# connections after 350 s.
KEEPALIVE_MS = 330_000
KEEPALIVE_TIMEOUT_MS = 10_000
FIRST_RECONNECT_MS = 100
MAX_RECONNECT_MS = 5_000

TENANT, PRIORITY = "x-embedmux-tenant", "x-embedmux-priority"
PriorityName = Literal["interactive", "bulk"]
Compression = Literal["none", "gzip"]
COMPRESSIONS = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}


def service_config(max_attempts: int = MAX_ATTEMPTS) -> dict[str, Any]:
    """gRPC's service config: which calls are tried again, and when: over some seconds, in which an engine is replaced.

    An overloaded server sends ``grpc-retry-pushback-ms``; gRPC then waits exactly that long instead of backing off.
    """
    methods: dict[str, Any] = {"name": [{"service": f"embedmux.v1.{service}"} for service in SERVICES]}
    if max_attempts > 1:
        methods["retryPolicy"] = {
            "maxAttempts": max_attempts,
            "initialBackoff": "0.2s",
            "maxBackoff": "5s",
            "backoffMultiplier": 3,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
    return {"methodConfig": [methods]}


def call_metadata(
    metadata: Sequence[tuple[str, str]], tenant: str, priority: PriorityName
) -> tuple[tuple[str, str], ...]:
    """What goes with every call; what is as the server takes it anyway is left out."""
    own = (
        *([(TENANT, tenant)] if tenant else []),
        *([(PRIORITY, priority)] if priority != "interactive" else []),
    )
    return (*metadata, *own)


def channel_options(*, max_attempts: int = MAX_ATTEMPTS) -> list[tuple[str, Any]]:
    """Options for ``grpc.insecure_channel`` and its kin; ``max_attempts`` 1 turns retries off."""
    if not 1 <= max_attempts <= MAX_ATTEMPTS:
        raise ValueError(f"max_attempts is {max_attempts}, it must be 1 to {MAX_ATTEMPTS}, gRPC's own limit")
    return [
        ("grpc.service_config", json.dumps(service_config(max_attempts))),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        # The caller chose the server and the batch size; gRPC's 4 MiB would refuse 1024 float32 vectors of 1024.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
