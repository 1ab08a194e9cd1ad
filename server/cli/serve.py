"""``embedmux serve``."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from embedmux.server.app import App
from embedmux.server.config import EngineConfig, Limits, ServeConfig
from embedmux.server.models import default_adapters


def serve(
    *,
    model: str = "minilm",
    adapters: Path | None = None,
    no_adapters: Annotated[bool, Parameter(negative="")] = False,
    address: str = "127.0.0.1:50051",
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    max_batch_tokens: int = 2048,
    max_queue_tokens: int = 262_144,
    max_texts: int = 2048,
    max_text_bytes: int = 1 << 20,
    max_message_bytes: int = 64 << 20,
    drain_s: float = 30.0,
    port_file: Path | None = None,
    allow_reference: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Serve a model and its task adapters over gRPC until SIGTERM or Ctrl-C.

    ``embedmux serve`` serves all-MiniLM-L6-v2 with its four task adapters.
    ``embedmux serve --model DIR --adapters DIR`` serves your own: DIR/NAME/adapter_config.json each.

    Parameters
    ----------
    model
        A packaged model (minilm), a local directory, or a hub id (owner/name, needs embedmux[hub]).
    adapters
        Folder of PEFT adapters, one sub-folder each; also the root that Adapters.Load may read below.
        Default: the adapters shipped for a packaged model.
    no_adapters
        Serve the bare model only.
    address
        host:port or unix:PATH; port 0 takes a free one.
    dtype
        Precision of weights and activations. bfloat16 is much faster where the processor has AMX.
    device
        Where the model runs.
    threads
        Compute threads of the engine; default: all cores.
    max_batch_tokens
        Token budget of one batch.
    max_queue_tokens
        Tokens that may wait; beyond it requests are refused with RESOURCE_EXHAUSTED and a time to retry.
    max_texts
        Texts in one request.
    max_text_bytes
        UTF-8 bytes of one text.
    max_message_bytes
        Bytes of one request on the wire.
    drain_s
        Seconds that accepted requests have to finish after SIGTERM.
    port_file
        Write the bound port into this file, for scripts that use port 0.
    allow_reference
        Serve even if an op has only its slow reference kernel.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s front %(levelname)s %(message)s")
    config = ServeConfig(
        engine=EngineConfig(
            model=model,
            adapters=None if no_adapters else (adapters or default_adapters(model)),
            dtype=dtype,
            device=device,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            allow_reference=allow_reference,
        ),
        limits=Limits(max_texts=max_texts, max_text_bytes=max_text_bytes, max_message_bytes=max_message_bytes),
        address=address,
        drain_s=drain_s,
        port_file=port_file,
    )

    async def run() -> None:
        await App(config).run()

    asyncio.run(run())
