"""What a server says about itself, its adapters and its tokens: frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from embedmux.client.errors import first_error, text_error
from embedmux.client.texts import OUTPUTS, ROLES, ErrorPolicy, check_policy
from embedmux.proto import adapters_pb2, embed_pb2, server_pb2
from embedmux.server.errors import EmbedmuxError

OUTPUT_NAMES = {number: name for name, number in OUTPUTS.items()}
ROLE_NAMES = {number: name for name, number in ROLES.items()}


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task: the adapter that serves it, its prompts, and the space of its full-size vectors."""

    name: str
    adapter: str
    query_prompt: str
    document_prompt: str
    space: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model. ``digest`` is the SHA-256 of its weights; ``kernels`` maps op -> csrc, triton or reference.

    ``kind`` is embedder or reranker. ``sizes`` are the declared dimensions, with every size from ``any_size_from`` up;
    ``outputs`` are what ``embed`` may be asked for. ``template`` shows where a free instruction goes and is empty where
    the model takes none; ``activation`` is how a reranker makes scores.
    """

    name: str
    digest: str
    architecture: str
    dimensions: int
    max_tokens: int
    pooling: str
    dtype: str
    device: str
    tasks: tuple[TaskInfo, ...]
    kernels: dict[str, str]
    instruction_set: str
    prompts: dict[str, str]
    calibrated_dimensions: tuple[int, ...]
    family: str
    kind: str
    sizes: tuple[int, ...]
    any_size_from: int | None
    outputs: tuple[str, ...]
    template: str
    default_instruction: str
    activation: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request and the queue may hold; 0 is no limit."""

    max_texts: int
    max_text_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server: version, state, models (the first is the default) and limits."""

    version: str
    state: str
    models: tuple[ModelInfo, ...]
    limits: Limits


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One loaded adapter. ``digest`` is the SHA-256 of its weights; ``num_bytes`` is what they take on the device.

    ``role`` is set where a task has one adapter for queries and another for documents. ``placement`` is "low-rank" or
    "merged".
    """

    id: str
    digest: str
    task: str
    prompts: dict[str, str]
    max_rank: int
    num_targets: int
    num_bytes: int
    calibrated_dimensions: tuple[int, ...]
    role: str | None
    model: str
    placement: str


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The ids a text is embedded from, prompt and special tokens included; empty where ``error`` is set."""

    ids: list[int]
    tokens: list[str]
    num_tokens_original: int
    prompt: str
    error: EmbedmuxError | None = None


def server_info(message: server_pb2.InfoResponse) -> ServerInfo:
    """The record of an Info reply."""
    limits = message.limits
    return ServerInfo(
        version=message.version,
        state=message.state,
        models=tuple(model_info(model) for model in message.models),
        limits=Limits(limits.max_texts, limits.max_text_bytes, limits.max_batch_tokens, limits.max_queue_tokens),
    )


def model_info(message: server_pb2.ModelInfo) -> ModelInfo:
    """The record of one model."""
    return ModelInfo(
        name=message.name,
        digest=message.digest,
        architecture=message.architecture,
        dimensions=message.dimensions,
        max_tokens=message.max_tokens,
        pooling=message.pooling,
        dtype=message.dtype,
        device=message.device,
        tasks=tuple(
            TaskInfo(task.name, task.adapter, task.query_prompt, task.document_prompt, task.space, tuple(task.aliases))
            for task in message.tasks
        ),
        kernels=dict(message.kernels),
        instruction_set=message.instruction_set,
        prompts=dict(message.prompts),
        calibrated_dimensions=tuple(message.calibrated_dimensions),
        family=message.family,
        kind=message.kind,
        sizes=tuple(message.sizes),
        any_size_from=message.any_size_from or None,
        outputs=tuple(OUTPUT_NAMES.get(number, f"output {number}") for number in message.outputs),
        template=message.template,
        default_instruction=message.default_instruction,
        activation=message.activation,
        notes=tuple(message.notes),
    )


def adapter_info(message: adapters_pb2.AdapterInfo) -> AdapterInfo:
    """The record of one adapter."""
    return AdapterInfo(
        id=message.id,
        digest=message.digest,
        task=message.task,
        prompts=dict(message.prompts),
        max_rank=message.max_rank,
        num_targets=message.num_targets,
        num_bytes=message.num_bytes,
        calibrated_dimensions=tuple(message.calibrated_dimensions),
        role=ROLE_NAMES.get(message.role),
        model=message.model,
        placement=message.placement,
    )


def tokenized_texts(message: embed_pb2.TokenizeResponse, policy: ErrorPolicy) -> list[TokenizedText]:
    """One record for every text of the request."""
    check_policy(policy)
    errors = {error.index: text_error(error) for error in message.errors}
    if errors and policy == "raise":
        raise first_error(errors, num_texts=len(message.texts))
    return [
        TokenizedText(list(text.ids), list(text.tokens), text.num_tokens_original, text.prompt, errors.get(index))
        for index, text in enumerate(message.texts)
    ]
