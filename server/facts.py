"""What the server says of itself and of what it has loaded; plain values, since some cross the process border."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What the front knows of a loaded adapter; plain values only, since it crosses the process border as JSON."""

    handle: int
    id: str
    digest: str
    task: str | None
    prompts: dict[str, str]
    calibrations: dict[int, str]
    max_rank: int
    num_bytes: int
    num_targets: int
    role: str | None = None  # where a task has one adapter for queries and another for documents
    placement: str = "low-rank"  # or "merged"
    path: str = ""  # its folder, as a Load names it: below the model's root, or the id of one that the checkpoint holds
    model: str = ""  # the name of the model it belongs to; the engine leaves it to the front


@dataclass(frozen=True, slots=True)
class Load:
    """How much the engine has to do.

    ``busy``: the share of the last second in which it computed. ``queue_seconds``: until what waits, or is being
    computed, should be done. ``num_adapters``: in service, of all models.
    """

    busy: float = 0.0
    queue_seconds: float = 0.0
    queued_tokens: int = 0
    num_adapters: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the front knows of a model; plain values only, since it crosses the process border as JSON.

    ``kind`` is embedder or reranker. ``sizes`` are the declared dimensions, the full one first, with every size from
    ``any_size_from`` up; ``outputs`` are values of records.Output. ``template`` is a format of {instruction}, empty
    where the model takes no free instruction; ``activation`` is a reranker's. ``notes`` are sentences for users.
    """

    name: str
    digest: str
    architecture: str
    dimensions: int
    max_tokens: int
    pooling: str
    dtype: str
    device: str
    calibrations: dict[int, str]
    backends: dict[str, str]
    isa: str
    family: str = ""
    kind: str = "embedder"
    sizes: tuple[int, ...] = ()
    any_size_from: int | None = None
    outputs: tuple[str, ...] = ("dense",)
    template: str = ""
    default_instruction: str = ""
    activation: str = ""
    notes: tuple[str, ...] = ()


class ServerState(enum.Enum):
    """Whether the server answers; the member's value is its name on the wire."""

    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"  # the engine process is being replaced
    DRAINING = "draining"  # accepted work is finished, new work should go elsewhere
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task of one model: its adapter (``None`` is the bare backbone), its prompts, the space of full-size vectors."""

    name: str
    adapter: str | None
    query_prompt: str
    document_prompt: str
    space: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model with everything a client may ask of it; ``prompts`` maps a prompt's name to its text."""

    info: ModelInfo
    tasks: tuple[TaskInfo, ...]
    prompts: dict[str, str]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server refuses to go beyond. ``max_message_bytes`` bounds one request on the wire."""

    max_texts: int
    max_text_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What this server is and serves; the first of a kind answers requests that name none."""

    version: str
    state: ServerState
    models: tuple[ServedModel, ...]
    limits: ServerLimits
