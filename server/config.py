"""Everything the server can be told, parsed once. Nothing below the command line reads flags or the environment."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from embedmux.server.errors import InvalidConfig

DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")
PLACEMENTS = ("low-rank", "merged")
QUANTIZE = ("none", "int8")
LOG_FORMATS = ("text", "json")
LOG_CALLS = ("none", "failed", "all")
ORCA = ("never", "asked", "always")
MAX_THREADS = 1024
MAX_TENANT_LENGTH = 64
MAX_PORT = 65_535
LOOPBACK = "127.0.0.1"
TOKENIZER_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to serve: where it comes from (see ``find_model``) and the name that requests use.

    ``adapters`` is the root below which its adapters may be read; None is the checkpoint's own folder, if it has one.
    """

    source: str = "minilm"
    adapters: Path | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.source)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine process is started with; it crosses the process border as JSON.

    Sizes are in tokens, texts or bytes as their names say, and hold for each model. ``max_prefix_tokens`` is how many
    tokens of shared prefixes a causal model keeps; 0 keeps none. ``placement`` is that of adapters whose Load names
    none, those of the start included. ``quantize`` "int8" multiplies the backbone's weights as int8 codes.

    ``max_queue_tokens`` holds for each class of work; ``bulk_share`` is what bulk work gets of a device that
    interactive work would fill. ``tenants`` are weights of those whose weight is not 1. ``coalesces``: texts
    that are the same as one in flight are not computed again; ``cache_bytes`` are kept of rows that were computed.
    """

    models: tuple[ModelConfig, ...] = (ModelConfig(),)
    loads_adapters: bool = True  # at the start, all that the root holds; a restarted engine is told what to load
    dtype: str = "float32"
    quantize: str = "none"
    device: str = "cpu"
    placement: str = "low-rank"
    threads: int | None = None
    max_batch_tokens: int = 2048
    max_batch_texts: int = 256
    max_queue_tokens: int = 262_144
    bulk_share: float = 0.1
    tenants: Mapping[str, float] = field(default_factory=dict)
    coalesces: bool = True
    cache_bytes: int = 0
    max_adapters: int = 64
    max_adapter_bytes: int = 1 << 30
    max_adapter_rank: int = 256
    max_prefix_tokens: int = 4096
    allow_reference: bool = False
    log_format: str = "text"  # of every process of the server

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidConfig(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.device not in DEVICES:
            raise InvalidConfig(f"device is {self.device!r}; it must be one of {', '.join(DEVICES)}")
        if self.placement not in PLACEMENTS:
            raise InvalidConfig(f"placement is {self.placement!r}; it must be one of {', '.join(PLACEMENTS)}")
        if self.log_format not in LOG_FORMATS:
            raise InvalidConfig(f"log_format is {self.log_format!r}; it must be one of {', '.join(LOG_FORMATS)}")
        if self.quantize not in QUANTIZE:
            raise InvalidConfig(f"quantize is {self.quantize!r}; it must be one of {', '.join(QUANTIZE)}")
        for name, value in (("placement", "merged"), ("quantize", "int8")):
            if self.device != "cpu" and getattr(self, name) == value:
                raise InvalidConfig(f"{name} {value!r} is served on the CPU only; leave it out, or use --device cpu")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise InvalidConfig(f"threads is {self.threads}; it must be 1 to {MAX_THREADS}")
        for name in ("max_prefix_tokens", "cache_bytes"):
            if getattr(self, name) < 0:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 < self.bulk_share < 1:
            raise InvalidConfig(f"bulk_share is {self.bulk_share}; it must be between 0 and 1, neither included")
        for tenant, weight in self.tenants.items():
            if len(tenant) > MAX_TENANT_LENGTH:
                raise InvalidConfig(f"tenant {tenant!r} has {len(tenant)} characters; it may have {MAX_TENANT_LENGTH}")
            if not 0 < weight < math.inf:
                raise InvalidConfig(f"the weight of tenant {tenant!r} is {weight}; it must be a number above 0")
        if not self.models:
            raise InvalidConfig("no model is named; give at least one")
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidConfig(f"model {twice[0]!r} is named twice; give each a name of its own, NAME=DIRECTORY")
        for name in ("max_batch_tokens", "max_batch_texts", "max_queue_tokens", "max_adapters", "max_adapter_bytes"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} is {getattr(self, name)}; it must be at least 1")

    def to_json(self) -> str:
        """The form in which the engine process gets it."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "EngineConfig":
        """The inverse of to_json."""
        values = json.loads(text)
        models = tuple(
            ModelConfig(
                model["source"], Path(model["adapters"]) if model["adapters"] is not None else None, model["name"]
            )
            for model in values.pop("models")
        )
        return cls(models=models, **values)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_texts: int = 2048
    max_text_bytes: int = 1 << 20
    max_message_bytes: int = 64 << 20
    max_stream_requests: int = 8
    max_stream_texts: int = 1024
    max_held_texts: int = 65_536  # of all streams together, read and not yet answered to the end

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise InvalidConfig(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What ``embedmux serve`` runs with.

    ``frontends`` processes answer clients, on one port. An engine that computes one batch for ``stuck_after_s`` is
    replaced. A connection is asked to go after ``max_connection_age_s``, so that clients find new servers of a fleet.
    ``metrics_address`` None serves no metrics. ``log_calls`` and ``orca`` say which calls get a line in the log and a
    load report. ``traces`` is the HOST:PORT of a collector, None for no traces; ``trace_ratio`` of the calls without a
    parent are sampled.
    """

    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    address: str = "127.0.0.1:50051"
    drain_s: float = 30.0
    port_file: Path | None = None
    metrics_address: str | None = None
    metrics_port_file: Path | None = None
    log_calls: str = "failed"
    orca: str = "asked"
    traces: str | None = None
    trace_ratio: float = 0.01
    shared_memory_bytes: int = 256 << 20
    tokenizer_threads: int = TOKENIZER_THREADS
    frontends: int = 1
    stuck_after_s: float = 120.0
    max_connection_age_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.frontends <= MAX_THREADS:
            raise InvalidConfig(f"frontends is {self.frontends}; it must be 1 to {MAX_THREADS}")
        if self.frontends > 1 and self.address.startswith("unix:"):
            raise InvalidConfig(f"frontends is {self.frontends}; only a host:port can be shared, not {self.address!r}")
        if not self.stuck_after_s > 0:
            raise InvalidConfig(f"stuck_after_s is {self.stuck_after_s}; it must be above 0")
        if self.max_connection_age_s is not None and not 0 < self.max_connection_age_s < math.inf:
            raise InvalidConfig(f"max_connection_age_s is {self.max_connection_age_s}; it must be above 0")
        if not 0 <= self.drain_s < math.inf:
            raise InvalidConfig(f"drain_s is {self.drain_s}; it must be a number of seconds, 0 or more")
        if self.tokenizer_threads < 1:
            raise InvalidConfig(f"tokenizer_threads is {self.tokenizer_threads}; it must be at least 1")
        if self.address in ("unix:", "unix://"):
            raise InvalidConfig(f"address is {self.address!r}; name the socket's path after it")
        if self.log_calls not in LOG_CALLS:
            raise InvalidConfig(f"log_calls is {self.log_calls!r}; it must be one of {', '.join(LOG_CALLS)}")
        if self.orca not in ORCA:
            raise InvalidConfig(f"orca is {self.orca!r}; it must be one of {', '.join(ORCA)}")
        if not 0 <= self.trace_ratio <= 1:
            raise InvalidConfig(f"trace_ratio is {self.trace_ratio}; it must be 0 to 1")
        if self.traces is not None:
            host_and_port(self.traces, "traces")
        if self.metrics_address is not None:
            host_and_port(self.metrics_address, "metrics_address")
        elif self.metrics_port_file is not None:
            raise InvalidConfig(f"metrics_port_file is {str(self.metrics_port_file)!r}; it needs a metrics_address")

    def to_json(self) -> str:
        """The form in which a front process beside the first gets it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"engine": self.engine.to_json(), "limits": asdict(self.limits)}
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> "ServeConfig":
        """The inverse of to_json, but for paths that only the first process writes."""
        values = json.loads(text)
        values |= {"engine": EngineConfig.from_json(values["engine"]), "limits": Limits(**values["limits"])}
        return cls(**values)


def host_and_port(address: str, name: str) -> tuple[str, int]:
    """The parts of HOST:PORT; no host is this machine alone. Raises InvalidConfig, which calls the address ``name``."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise InvalidConfig(f"{name} is {address!r}; it takes HOST:PORT with a port of 0 to {MAX_PORT}")
    return host.removeprefix("[").removesuffix("]") or LOOPBACK, int(port)
