"""``embedmux serve``."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from embedmux.server import cli, logs
from embedmux.server.app import App
from embedmux.server.cli.console import WrongUsage
from embedmux.server.config import TOKENIZER_THREADS, EngineConfig, Limits, ModelConfig, ServeConfig
from embedmux.server.errors import EmbedmuxError
from embedmux.server.models import default_adapters

logger = logging.getLogger(__name__)


def serve(
    *,
    model: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ("minilm",),
    adapters: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    no_adapters: Annotated[bool, Parameter(negative="")] = False,
    address: str = "127.0.0.1:50051",
    dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: Literal["none", "int8"] = "none",
    device: Literal["cpu", "cuda"] = "cpu",
    placement: Literal["low-rank", "merged"] = "low-rank",
    threads: int | None = None,
    tokenizer_threads: int = TOKENIZER_THREADS,
    max_batch_tokens: int = 2048,
    max_queue_tokens: int = 262_144,
    bulk_share: float = 0.1,
    tenant: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    coalesce: Annotated[bool, Parameter(negative="--no-coalesce")] = True,
    cache_bytes: int = 0,
    max_prefix_tokens: int = 4096,
    max_adapter_bytes: int = 1 << 30,
    max_texts: int = 2048,
    max_text_bytes: int = 1 << 20,
    max_message_bytes: int = 64 << 20,
    frontends: int = 1,
    drain_s: float = 30.0,
    max_connection_age_s: float | None = None,
    stuck_after_s: float = 120.0,
    port_file: Path | None = None,
    metrics_address: str | None = None,
    metrics_port_file: Path | None = None,
    traces: str | None = None,
    trace_ratio: float = 0.01,
    orca: Literal["never", "asked", "always"] = "asked",
    log_format: Literal["text", "json"] = "text",
    log_calls: Literal["none", "failed", "all"] = "failed",
    allow_reference: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Serve models and their task adapters over gRPC until SIGTERM or Ctrl-C.

    Without options it serves all-MiniLM-L6-v2 with its four task adapters. One's own adapters lie in a folder each,
    DIR/NAME/adapter_config.json.

    Examples:

        embedmux serve

        embedmux serve --model DIR --adapters DIR

        embedmux serve --model e5=DIR --model judge=DIR

    Parameters
    ----------
    model
        A packaged model (minilm), a local directory, or a hub id (owner/name, needs embedmux[hub]); NAME=MODEL gives it
        a name for requests. Repeat it to serve several. Default: minilm.
    adapters
        Folder of PEFT adapters, one sub-folder each; also the root that Adapters.Load may read below. With several
        models, NAME=FOLDER for each. Default: the adapters shipped for a packaged model, or the checkpoint's own.
    no_adapters
        Leave out the adapters shipped for a packaged model.
    address
        host:port or unix:PATH; port 0 takes a free one.
    dtype
        Precision of weights and activations. bfloat16 is much faster where the processor has AMX.
    quantize
        int8 multiplies the model's linears as int8 codes, with a scale for each output channel and each token: faster
        and smaller, vectors move a little (cosine above 0.99). Best beside bfloat16.
    device
        Where the model runs.
    placement
        How adapters are applied unless a Load says otherwise. low-rank: beside the base weights, small and quick to
        load, some percent slower a text. merged: added into a copy of the weights, as fast as the base model, at the
        memory of that copy for each adapter.
    threads
        Compute threads of the engine; default: all cores.
    tokenizer_threads
        Threads that read texts: as many requests, or parts of a large one, at once.
    max_batch_tokens
        Token budget of one batch.
    max_queue_tokens
        Tokens that may wait, of interactive and of bulk work each; beyond it requests are refused with
        RESOURCE_EXHAUSTED and a time to retry.
    bulk_share
        Part of the device that bulk work gets (metadata x-embedmux-priority: bulk) while interactive work would fill
        it; it takes all that interactive work leaves.
    tenant
        NAME=WEIGHT: a tenant (metadata x-embedmux-tenant) with WEIGHT times the share of one that is not named here,
        while both have work waiting. Repeat it for several.
    coalesce
        Compute texts once that are the same as one in flight.
    cache_bytes
        Memory for rows of texts that were computed: the same text is answered from there, bit for bit. 0 keeps none.
    max_prefix_tokens
        Tokens of prompts and rerank queries whose keys and values a causal model keeps for reuse; 0 keeps none.
    max_adapter_bytes
        Memory that the adapters of a model may take, copies of merged ones included.
    max_texts
        Texts in one request.
    max_text_bytes
        UTF-8 bytes of one text.
    max_message_bytes
        Bytes of one request on the wire.
    frontends
        Processes that speak gRPC and read texts, on one port, before the one engine. More help where the engine waits
        for them: on many cores or a GPU. Needs a host:port address.
    drain_s
        Seconds that accepted requests have to finish after SIGTERM.
    max_connection_age_s
        Ask a client to connect anew after so many seconds, so that it finds servers that were added; default: never.
    stuck_after_s
        Replace an engine process that computes one batch, or gives no sign of life, for so long.
    port_file
        Write the bound port into this file, for scripts that use port 0.
    metrics_address
        HOST:PORT for Prometheus' /metrics, `embedmux top` and /healthz; port 0 takes a free one, and :PORT listens on
        this machine alone. There is no password: name an address that only those reach who may read it.
    metrics_port_file
        Write the bound port of the metrics into this file.
    traces
        HOST:PORT of an OpenTelemetry collector (OTLP over gRPC, without TLS), such as localhost:4317: every sampled
        call becomes a span there, with tokenising, queue and computing below it. Needs embedmux[traces].
    trace_ratio
        Part of the calls without a sampled parent (metadata traceparent) that is traced; with one, the parent decides.
    orca
        Which calls get a load report (ORCA) in their trailers: those that ask by metadata endpoint-load-metrics-format,
        or all. Its application_utilization is the busy share of the last second plus the seconds of work that wait.
    log_format
        Lines of text, or a JSON object a line, of every process of the server.
    log_calls
        Calls with a line of their own in the log: method, request id, tenant, status, time, texts, tokens. failed:
        those that end with INTERNAL, UNKNOWN or UNAVAILABLE. Never a text.
    allow_reference
        Serve even if an op has only its slow reference kernel.
    """
    logs.configure("front", log_format)
    config = ServeConfig(
        engine=EngineConfig(
            models=served_models(model, adapters, has_defaults=not no_adapters),
            dtype=dtype,
            quantize=quantize,
            device=device,
            placement=placement,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            bulk_share=bulk_share,
            tenants=tenant_weights(tenant),
            coalesces=coalesce,
            cache_bytes=cache_bytes,
            max_prefix_tokens=max_prefix_tokens,
            max_adapter_bytes=max_adapter_bytes,
            allow_reference=allow_reference,
            log_format=log_format,
        ),
        limits=Limits(max_texts=max_texts, max_text_bytes=max_text_bytes, max_message_bytes=max_message_bytes),
        address=address,
        tokenizer_threads=tokenizer_threads,
        frontends=frontends,
        drain_s=drain_s,
        max_connection_age_s=max_connection_age_s,
        stuck_after_s=stuck_after_s,
        port_file=port_file,
        metrics_address=metrics_address,
        metrics_port_file=metrics_port_file,
        traces=traces,
        trace_ratio=trace_ratio,
        orca=orca,
        log_calls=log_calls,
    )

    async def run() -> None:
        await App(config).run()

    try:
        asyncio.run(run())
    except (EmbedmuxError, OSError, ImportError) as error:
        if log_format == "text":
            raise  # main says it in a line for people
        logger.critical("%s", cli.reason(error))
        return cli.FAILED
    return 0


def tenant_weights(arguments: Sequence[str]) -> dict[str, float]:
    """NAME=WEIGHT of every ``--tenant``. Raises WrongUsage for what is none."""
    weights: dict[str, float] = {}
    for argument in arguments:
        name, equals, weight = argument.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            equals = ""
        if not name or not equals:
            raise WrongUsage(f"tenant is {argument!r}; it takes NAME=WEIGHT, such as search=3")
    return weights


def served_models(models: Sequence[str], adapters: Sequence[str], *, has_defaults: bool) -> tuple[ModelConfig, ...]:
    """One record for each ``--model``, with the ``--adapters`` that name it. Raises WrongUsage for what fits none."""
    sources: dict[str, str] = {}
    for name, source in map(named, models):
        if name in sources:
            raise WrongUsage(f"model {name!r} is named twice; give each a name of its own: --model NAME=DIRECTORY")
        sources[name] = source
    folders: dict[str, Path] = {}
    for argument in adapters:
        name, folder = named(argument)
        if name == folder:
            if len(sources) > 1:
                raise WrongUsage(f"adapters {argument!r}: say for which model, NAME={argument} with {one_of(sources)}")
            name = next(iter(sources))
        if name not in sources:
            raise WrongUsage(f"adapters {argument!r}: there is no model {name!r}, only {one_of(sources)}")
        if name in folders:
            raise WrongUsage(
                f"adapters {argument!r}: model {name!r} has {str(folders[name])!r} already; give one folder"
            )
        folders[name] = Path(folder)
    return tuple(
        ModelConfig(source, folders.get(name, default_adapters(source) if has_defaults else None), name)
        for name, source in sources.items()
    )


def named(argument: str) -> tuple[str, str]:
    """The name and the value of NAME=VALUE; a value without a name is its own, and so is a folder that has a =."""
    name, equals, value = argument.partition("=")
    return (name, value) if equals and name and value and not Path(argument).exists() else (argument, argument)


def one_of(names: Sequence[str] | dict[str, str]) -> str:
    """The names as messages show them."""
    return " or ".join(map(repr, names))
