"""What the server says of itself, as proto: adapters, models, tasks, limits."""

from embedmux.proto import adapters_pb2, server_pb2
from embedmux.server import facts
from embedmux.server.records import Output, Role
from embedmux.server.rpc.convert import OUTPUT_NUMBERS, ROLE_NUMBERS


def adapter_info(adapter: facts.AdapterInfo) -> adapters_pb2.AdapterInfo:
    """What clients see of a loaded adapter."""
    return adapters_pb2.AdapterInfo(
        id=adapter.id,
        digest=adapter.digest,
        task=adapter.task or "",
        prompts=adapter.prompts,
        max_rank=adapter.max_rank,
        num_targets=adapter.num_targets,
        num_bytes=adapter.num_bytes,
        calibrated_dimensions=sorted(adapter.calibrations),
        role=ROLE_NUMBERS[Role(adapter.role) if adapter.role else None],
        model=adapter.model,
        placement=adapter.placement,
    )


def info_reply(info: facts.ServerInfo) -> server_pb2.InfoResponse:
    """The answer of Server.Info."""
    limits = server_pb2.Limits(
        max_texts=info.limits.max_texts,
        max_text_bytes=info.limits.max_text_bytes,
        max_batch_tokens=info.limits.max_batch_tokens,
        max_queue_tokens=info.limits.max_queue_tokens,
        max_message_bytes=info.limits.max_message_bytes,
    )
    models = [model_info(model) for model in info.models]
    return server_pb2.InfoResponse(version=info.version, state=info.state.value, models=models, limits=limits)


def model_info(model: facts.ServedModel) -> server_pb2.ModelInfo:
    """One model with its tasks and prompts; a reranker's score is nothing that Embed could be asked for."""
    outputs = [Output(name) for name in model.info.outputs]
    return server_pb2.ModelInfo(
        name=model.info.name,
        digest=model.info.digest,
        architecture=model.info.architecture,
        dimensions=model.info.dimensions,
        max_tokens=model.info.max_tokens,
        pooling=model.info.pooling,
        dtype=model.info.dtype,
        device=model.info.device,
        tasks=[task_info(task) for task in model.tasks],
        kernels=model.info.backends,
        instruction_set=model.info.isa,
        prompts=model.prompts,
        calibrated_dimensions=sorted(model.info.calibrations),
        family=model.info.family,
        kind=model.info.kind,
        sizes=model.info.sizes,
        any_size_from=model.info.any_size_from or 0,
        outputs=[OUTPUT_NUMBERS[output] for output in outputs if output is not Output.SCORE],
        template=model.info.template,
        default_instruction=model.info.default_instruction,
        activation=model.info.activation,
        notes=model.info.notes,
    )


def task_info(task: facts.TaskInfo) -> server_pb2.TaskInfo:
    """One task; an empty adapter is the bare backbone."""
    return server_pb2.TaskInfo(
        name=task.name,
        adapter=task.adapter or "",
        query_prompt=task.query_prompt,
        document_prompt=task.document_prompt,
        space=task.space,
        aliases=task.aliases,
    )
