"""A grpc.aio server that does what a message says; arguments are ``name=value`` channel options. Prints its port.

``ok:N`` is answered by N bytes, ``length`` and more by a byte for each kilobyte of the message, ``refuse`` with a
push-back of 250 ms, ``late`` by DEADLINE_EXCEEDED, ``slow`` after 20 ms, ``tenant:x`` only if the metadata say so;
``keep`` prints a line and is never answered.
"""

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio


async def answer(request: bytes, context: Any) -> bytes:
    """The reply's bytes as they are."""
    what, _, value = request.partition(b":")
    metadata = dict(context.invocation_metadata())
    if what == b"refuse":
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", (("grpc-retry-pushback-ms", "250"),))
    elif what == b"late":
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "héron " * 40)
    elif what == b"tenant" and metadata.get("x-embedmux-tenant") != value.decode():
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"not {metadata.get('x-embedmux-tenant')}")
    elif what == b"keep":
        print("kept", flush=True)
        await asyncio.Event().wait()
    elif what == b"slow":
        await asyncio.sleep(0.02)
    elif what == b"length":
        return bytes(len(request) // 1024)
    return bytes(int(value)) if what == b"ok" else b""


async def serve() -> None:
    """Until it is killed."""
    options = [(name, int(value)) for name, value in (argument.split("=") for argument in sys.argv[1:])]
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), *options])
    handlers = {"Embed": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("embedmux.v1.Embedder", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
