"""The floor of a serving benchmark: what gRPC for Python answers when nothing is computed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import grpc.aio

from harness.http2.load import EMBED, Load, Outcome

DIMENSIONS = 384
WARMUP_S = 1.0
# Field 1, a byte string: EmbedResponse.vectors with one float32 vector.
REPLY = b"\x0a" + bytes([4 * DIMENSIONS & 0x7F | 0x80, 4 * DIMENSIONS >> 7]) + bytes(4 * DIMENSIONS)
BENCH = Path(__file__).parents[1]


@contextlib.contextmanager
def echoing() -> Iterator[str]:
    """The address of a bare grpc.aio server that answers every Embed with one vector's bytes."""
    environment = {**os.environ, "PYTHONPATH": str(BENCH)}
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.echo"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def echo_run(
    bodies: Sequence[bytes], *, in_flight: int = 64, seconds: float = 5.0, connections: int = 1, gather_s: float = 0.001
) -> Outcome:
    """A closed loop on the bare server, after a second of warm-up with the same bodies."""
    with echoing() as address, Load(address, connections=connections) as load:
        load.closed(bodies, in_flight=in_flight, seconds=WARMUP_S, gather_s=gather_s)
        return load.closed(bodies, in_flight=in_flight, seconds=seconds, gather_s=gather_s)


def echo_rate(
    bodies: Sequence[bytes], *, in_flight: int = 64, seconds: float = 5.0, connections: int = 1, gather_s: float = 0.001
) -> float:
    """Calls a second; ``bodies`` must suffice for the seconds, at some 10,000 of them a second."""
    return echo_run(bodies, in_flight=in_flight, seconds=seconds, connections=connections, gather_s=gather_s).rate()


async def serve() -> None:
    """Prints the port and serves until it is killed."""

    async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return REPLY

    server = grpc.aio.server()
    service, method = EMBED.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
