"""What a client may ask for: tasks, adapters, prompts, sizes, and which space the answer lives in."""

from embedmux.server.bridge.port import EnginePort
from embedmux.server.errors import InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo, TaskInfo
from embedmux.server.records import BASE_MODEL, Encoding, Role, Route, Space
from embedmux.server.requests import Instruction
from embedmux.server.spaces import space_id
from embedmux.server.tasks import ALIASES, aliases_of
from embedmux.server.text.prompts import DOCUMENT_NAMES, QUERY_NAMES, Prompts

MAX_CACHED_ROUTES = 4096


class Catalog:
    """Resolves instructions against what is loaded now. Answers are cached until an adapter comes or goes."""

    def __init__(self, engine: EnginePort, prompts: Prompts) -> None:
        self._engine = engine
        self.prompts = prompts
        self._routes: dict[tuple[Instruction, int, Encoding], Route] = {}
        self._routes_for: dict[str, AdapterInfo] = {}

    def dimensions(self, asked: int | None) -> int:
        """The size of the vectors; None or 0 is the model's own. Raises InvalidRequest above it."""
        full = self._engine.model.dimensions
        if not asked:
            return full
        if not 0 < asked <= full:
            raise InvalidRequest(f"dimensions is {asked}; the model's vectors have {full}, ask for 1 to {full}")
        return asked

    def route(self, instruction: Instruction, dimensions: int, encoding: Encoding) -> Route:
        """Which adapter and prompt serve an instruction, and in which space; raises NotFound or InvalidRequest."""
        if instruction.prompt is not None:  # as many as clients like, so none is kept
            return self._resolve(instruction, dimensions, encoding)
        adapters = self._engine.adapters
        if adapters is not self._routes_for or len(self._routes) > MAX_CACHED_ROUTES:
            self._routes, self._routes_for = {}, adapters
        key = (instruction, dimensions, encoding)
        if (found := self._routes.get(key)) is None:
            found = self._routes[key] = self._resolve(instruction, dimensions, encoding)
        return found

    def tasks(self) -> list[TaskInfo]:
        """Every task a client may name, by name."""
        found = []
        for name in self._task_names():
            adapter = self._adapter_for(Instruction(task=name), name)
            prompts = self._prompts_of(adapter)
            space = self._space(adapter, name, prompts.pair, self._engine.model.dimensions)
            aliases = tuple(aliases_of(name))
            found.append(TaskInfo(name, adapter.id if adapter else None, *prompts.pair, space=space, aliases=aliases))
        return found

    def _resolve(self, instruction: Instruction, dimensions: int, encoding: Encoding) -> Route:
        task, role = _canonical(instruction)
        adapter = self._adapter_for(instruction, task)
        prompts = self._prompts_of(adapter)
        prompt, pair = _choose_prompt(instruction, prompts, role, task)
        space = self._space(adapter, task, pair, dimensions)
        calibration = self._calibration(adapter, dimensions, encoding) if encoding.is_calibrated else ""
        handle, adapter_id = (adapter.handle, adapter.id) if adapter else (BASE_MODEL, "")
        return Route(handle, adapter_id, prompt, Space(space, calibration))

    def _adapter_for(self, instruction: Instruction, task: str | None) -> AdapterInfo | None:
        adapters = self._engine.adapters
        if instruction.adapter:
            if instruction.adapter not in adapters:
                raise NotFound(f"adapter {instruction.adapter!r} is not loaded; loaded: {_listed(adapters)}")
            chosen = adapters[instruction.adapter]
            if task and chosen.task and chosen.task != task:
                raise InvalidRequest(
                    f"adapter {chosen.id!r} was made for task {chosen.task!r}, the text names task {task!r}; "
                    "name one of the two"
                )
            return chosen
        if not task:
            return None
        serving = {name: info for name, info in adapters.items() if task in (info.task, name)}
        if task in serving:
            return serving[task]
        if len(serving) > 1:
            raise InvalidRequest(f"task {task!r} is served by several adapters; name one of them: {_listed(serving)}")
        if serving:
            return next(iter(serving.values()))
        if task == "retrieval" and any(self.prompts.pair):
            return None  # the model serves retrieval by its prompts alone
        raise NotFound(f"task {task!r} is not served; this server has: {_listed(self._task_names())}")

    def _task_names(self) -> list[str]:
        names = {info.task or name for name, info in self._engine.adapters.items()}
        if any(self.prompts.pair):
            names.add("retrieval")
        return sorted(names)

    def _prompts_of(self, adapter: AdapterInfo | None) -> Prompts:
        """An adapter that brings prompts of its own was trained with these; else the model's hold."""
        return Prompts(adapter.prompts) if adapter and adapter.prompts else self.prompts

    def _space(self, adapter: AdapterInfo | None, task: str | None, pair: tuple[str, str], dimensions: int) -> str:
        model = self._engine.model
        label = (adapter.task or adapter.id) if adapter else (task or "base")
        return space_id(
            label,
            backbone=model.digest,
            adapter=adapter.digest if adapter else None,
            prompts=pair,
            dimensions=dimensions,
            pooling=model.pooling,
        )

    def _calibration(self, adapter: AdapterInfo | None, dimensions: int, encoding: Encoding) -> str:
        stored = adapter.calibrations if adapter else self._engine.model.calibrations
        if dimensions not in stored:
            owner = f"adapter {adapter.id!r}" if adapter else "the bare model"
            raise InvalidRequest(
                f"encoding {encoding.value!r} needs stored ranges, {owner} has none for {dimensions} dimensions; "
                f"it has: {_listed(stored)}"
            )
        return stored[dimensions]


def _canonical(instruction: Instruction) -> tuple[str | None, Role | None]:
    """Task and role after aliases; an alias that implies another role than the one given is refused."""
    task, implied = ALIASES.get(instruction.task or "", (instruction.task or None, None))
    if implied and instruction.role and implied is not instruction.role:
        raise InvalidRequest(
            f"task {instruction.task!r} means role {implied.value!r}, the text names role {instruction.role.value!r}"
        )
    return task, instruction.role or implied


def _choose_prompt(
    instruction: Instruction, prompts: Prompts, role: Role | None, task: str | None
) -> tuple[str, tuple[str, str]]:
    """The literal prefix, and the (query, document) pair that marks the space.

    A free prompt, and a named one that belongs to neither side, stand for a pair of their own.
    """
    if instruction.prompt is not None:
        return instruction.prompt, (instruction.prompt, instruction.prompt)
    name = instruction.prompt_name
    if name is None and role is None and not task and not instruction.adapter:
        name = prompts.default_name
    if name:
        if name not in prompts.by_name:
            raise NotFound(f"prompt {name!r} is not known here; known: {_listed(prompts.by_name)}")
        text = prompts.by_name[name]
        return text, prompts.pair if name in QUERY_NAMES + DOCUMENT_NAMES else (text, text)
    query, document = prompts.pair
    if role is None and query != document and (task or instruction.adapter):
        raise InvalidRequest(
            f"task {task or instruction.adapter!r} has different prompts for queries and documents; "
            "set role to query or document"
        )
    if role is None:
        return ("", ("", "")) if query != document else (document, prompts.pair)
    return query if role is Role.QUERY else document, prompts.pair


def _listed(names: object) -> str:
    found = sorted(names)  # type: ignore[call-overload]
    return ", ".join(map(str, found)) if found else "none"
