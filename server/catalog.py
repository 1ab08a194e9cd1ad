"""What a client may ask of one model: tasks, adapters, prompts, sizes, outputs, and which space the answer lives in."""

from embedmux.server.bridge.port import EnginePort
from embedmux.server.contract import Contract, Prompts
from embedmux.server.errors import InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo, TaskInfo
from embedmux.server.instructions import Pair, Purpose, choose_prompt, pair_of, purpose_of, purpose_of_adapter
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Role, Route, Space
from embedmux.server.requests import EmbedJob, Instruction
from embedmux.server.spaces import space_id
from embedmux.server.tasks import RETRIEVAL, TASKS, aliases_of

MAX_CACHED_ROUTES = 4096


class Catalog:
    """Resolves instructions against what is loaded now. Answers are cached until an adapter comes or goes."""

    def __init__(self, engine: EnginePort, contract: Contract) -> None:
        self._engine = engine
        self.contract = contract
        self._routes: dict[tuple[Instruction, OutputSpec], Route] = {}
        self._routes_for: dict[str, AdapterInfo] = {}

    @property
    def prompts(self) -> Prompts:
        """The model's named prompts."""
        return self.contract.prompts

    def output(self, job: EmbedJob) -> OutputSpec:
        """What the engine is to make of the job's texts; raises InvalidRequest for what the model does not offer."""
        outputs = self._outputs(job.outputs)
        if Output.TOKENS in outputs and job.encoding.is_calibrated:
            raise InvalidRequest(
                f"encoding {job.encoding.value!r} needs stored ranges, token vectors have none; "
                "ask for float32, float16, bfloat16, binary or ubinary"
            )
        dimensions = self.dimensions(job.dimensions, forces=job.forces_dimensions)
        return OutputSpec(dimensions, job.encoding, outputs, self._token_dimensions(outputs))

    def dimensions(self, asked: int | None, *, forces: bool = False) -> int:
        """The size of the dense vectors; None or 0 is the full one. Raises InvalidRequest for one not declared.

        ``forces`` takes any smaller size, except from a model whose smaller vectors are projections and not slices.
        """
        contract = self.contract
        full = contract.dimensions
        if not asked or contract.declares(asked):
            return asked or full
        if not 0 < asked <= full:
            raise InvalidRequest(f"dimensions is {asked}; the model's vectors have {full}, ask for {self._sizes()}")
        if contract.projections is not None:
            raise InvalidRequest(
                f"dimensions is {asked}; smaller vectors of the model are projections, a cut one means nothing; "
                f"ask for {self._sizes()}"
            )
        if not forces:
            raise InvalidRequest(
                f"dimensions is {asked}; the model declares {self._sizes()}; "
                "ask for one of these, or set force_dimensions to cut the vector all the same"
            )
        return asked

    def route(self, instruction: Instruction, output: OutputSpec) -> Route:
        """Which adapter and prompt serve an instruction, and in which space; raises NotFound or InvalidRequest."""
        if instruction.prompt is not None or instruction.instruction is not None:
            return self._resolve(instruction, output)  # as many as clients like, so none is kept
        adapters = self._engine.adapters
        if adapters is not self._routes_for or len(self._routes) > MAX_CACHED_ROUTES:
            self._routes, self._routes_for = {}, adapters
        key = (instruction, output)
        if (found := self._routes.get(key)) is None:
            found = self._routes[key] = self._resolve(instruction, output)
        return found

    def tasks(self) -> list[TaskInfo]:
        """Every task a client may name, by name; one that several adapters serve once for each of them."""
        outputs = self.contract.outputs
        output = OutputSpec(self.contract.dimensions, Encoding.FLOAT32, outputs, self._token_dimensions(outputs))
        found = []
        for name in self._task_names():
            serving = [info for info in self._engine.adapters.values() if _serves(info, name)]
            roles = {role: [info for info in serving if purpose_of_adapter(info).role is role] for role in Role}
            is_pair = all(len(of_role) == 1 for of_role in roles.values())
            listed: list[AdapterInfo | None] = [*(serving[:1] if is_pair else serving)] or [None]
            for adapter in listed:
                pair, _ = pair_of(self._prompts_of(adapter), name)
                adapters = ", ".join(info.id for info in serving) if is_pair else adapter.id if adapter else None
                space = self._space(adapter, pair, output)
                found.append(TaskInfo(name, adapters, *pair, space=space, aliases=tuple(aliases_of(name))))
        return found

    def _outputs(self, asked: tuple[Output, ...]) -> tuple[Output, ...]:
        """Each once, in the order of a row."""
        offered = self.contract.outputs
        for output in asked:
            if output not in offered:
                raise InvalidRequest(
                    f"model {self._engine.model.name!r} makes no {output.value} output; "
                    f"it makes: {_listed([other.value for other in offered])}"
                )
        if not asked:
            raise InvalidRequest(f"outputs is empty; ask for one of: {_listed([other.value for other in offered])}")
        return tuple(output for output in Output if output in asked)

    def _token_dimensions(self, outputs: tuple[Output, ...]) -> int:
        if Output.TOKENS not in outputs:
            return 0
        assert self.contract.late is not None, "a contract that offers token vectors describes them"
        return self.contract.late.dimensions

    def _sizes(self) -> str:
        contract = self.contract
        declared = ", ".join(map(str, contract.sizes))
        low = contract.any_size_from
        return declared if low is None else f"{declared} and any size from {low} to {contract.dimensions}"

    def _resolve(self, instruction: Instruction, output: OutputSpec) -> Route:
        purpose = purpose_of(instruction)
        adapter = self._adapter_for(instruction, purpose)
        if adapter is not None:
            own = purpose_of_adapter(adapter)
            purpose = Purpose(purpose.task or own.task, purpose.role or own.role)
        elif self.contract.needs_task:
            raise InvalidRequest(
                f"model {self._engine.model.name!r} computes nothing without an adapter, the text names no task; "
                f"name one of: {_listed(self._task_names())}"
            )
        prompt, pair = choose_prompt(instruction, purpose, self._prompts_of(adapter), self.contract)
        space = self._space(adapter, pair, output)
        is_calibrated = output.encoding.is_calibrated and Output.DENSE in output.outputs
        calibration = self._calibration(adapter, output) if is_calibrated else ""
        handle, adapter_id = (adapter.handle, adapter.id) if adapter else (BASE_MODEL, "")
        return Route(handle, adapter_id, prompt, Space(space, calibration), purpose.role)

    def _adapter_for(self, instruction: Instruction, purpose: Purpose) -> AdapterInfo | None:
        adapters, task = self._engine.adapters, purpose.task
        if instruction.adapter:
            if instruction.adapter not in adapters:
                raise NotFound(f"adapter {instruction.adapter!r} is not loaded; loaded: {_listed(adapters)}")
            return _checked(adapters[instruction.adapter], purpose)
        if not task:
            return None
        of_task = [info for info in adapters.values() if _serves(info, task)]
        serving = [info for info in of_task if purpose_of_adapter(info).role in (None, purpose.role)]
        named = [info for info in serving if info.id == task]
        if named or len(serving) == 1:
            return (named or serving)[0]
        if serving:
            names = _listed([info.id for info in serving])
            raise InvalidRequest(f"task {task!r} is served by several adapters; name one of them: {names}")
        if of_task and purpose.role is None:
            raise InvalidRequest(
                f"task {task!r} has one adapter for queries and another for documents; set role to query or document"
            )
        if of_task:
            assert purpose.role is not None
            raise NotFound(
                f"task {task!r} has no adapter for role {purpose.role.value!r}; "
                f"loaded for it: {_listed([info.id for info in of_task])}"
            )
        if task in self._prompted_tasks():
            return None  # the model serves it by its prompts alone
        raise NotFound(f"task {task!r} is not served; this server has: {_listed(self._task_names())}")

    def _prompted_tasks(self) -> list[str]:
        """Tasks that the bare model serves, since it has prompts for them."""
        if self.contract.needs_task:
            return []
        found = [(task, *pair_of(self.prompts, task)) for task in TASKS]
        return [task for task, pair, is_own in found if is_own or (task == RETRIEVAL and any(pair))]

    def _task_names(self) -> list[str]:
        adapters = self._engine.adapters.items()
        return sorted({purpose_of_adapter(info).task or name for name, info in adapters} | {*self._prompted_tasks()})

    def _prompts_of(self, adapter: AdapterInfo | None) -> Prompts:
        """An adapter that brings prompts of its own was trained with these; else the model's hold."""
        if adapter is None or not adapter.prompts:
            return self.prompts
        partner = self._partner_of(adapter)
        return Prompts({**(partner.prompts if partner else {}), **adapter.prompts})

    def _partner_of(self, adapter: AdapterInfo) -> AdapterInfo | None:
        """The adapter for the other side of a task that has one for each; None where there is not exactly one."""
        own = purpose_of_adapter(adapter)
        if own.task is None or own.role is None:
            return None
        others = [(info, purpose_of_adapter(info)) for info in self._engine.adapters.values()]
        found = [info for info, other in others if other.task == own.task and other.role not in (None, own.role)]
        return found[0] if len(found) == 1 else None

    def _space(self, adapter: AdapterInfo | None, pair: Pair, output: OutputSpec) -> str:
        """The label too follows from what decides the vectors, and not from the words of the request."""
        model = self._engine.model
        if adapter:
            label = purpose_of_adapter(adapter).task or adapter.id
        else:
            prompted = self._prompted_tasks()
            label = next((task for task in prompted if pair_of(self.prompts, task)[0] == pair), "base")
        is_dense = Output.DENSE in output.outputs
        return space_id(
            label,
            backbone=model.digest,
            adapter=self._digest(adapter) if adapter else None,
            prompts=pair,
            dimensions=output.dimensions if is_dense else output.token_dimensions,
            pooling=model.pooling if is_dense else output.outputs[0].value,
        )

    def _digest(self, adapter: AdapterInfo) -> str:
        """Of the weights that decide an adapter's space: where each side has its own, of both."""
        if (partner := self._partner_of(adapter)) is None:
            return adapter.digest
        is_query = purpose_of_adapter(adapter).role is Role.QUERY
        query, document = (adapter, partner) if is_query else (partner, adapter)
        return f"{query.digest}+{document.digest}"

    def _calibration(self, adapter: AdapterInfo | None, output: OutputSpec) -> str:
        stored = adapter.calibrations if adapter else self._engine.model.calibrations
        if output.dimensions not in stored:
            owner = f"adapter {adapter.id!r}" if adapter else "the bare model"
            raise InvalidRequest(
                f"encoding {output.encoding.value!r} needs stored ranges, {owner} has none for {output.dimensions} "
                f"dimensions; it has: {_listed(stored)}"
            )
        return stored[output.dimensions]


def _serves(adapter: AdapterInfo, task: str) -> bool:
    return task in (purpose_of_adapter(adapter).task, adapter.id)


def _checked(adapter: AdapterInfo, asked: Purpose) -> AdapterInfo:
    """An adapter that was named, refused if the text also names another task or the other side."""
    own = purpose_of_adapter(adapter)
    if asked.task and own.task and own.task != asked.task:
        raise InvalidRequest(
            f"adapter {adapter.id!r} was made for task {own.task!r}, the text names task {asked.task!r}; "
            "name one of the two"
        )
    if asked.role and own.role and own.role is not asked.role:
        raise InvalidRequest(
            f"adapter {adapter.id!r} was made for role {own.role.value!r}, the text has role {asked.role.value!r}; "
            "name the task and leave the adapter out"
        )
    return adapter


def _listed(names: object) -> str:
    found = sorted(names)  # type: ignore[call-overload]
    return ", ".join(map(str, found)) if found else "none"
