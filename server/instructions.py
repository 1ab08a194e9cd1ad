"""What an instruction means before any adapter is chosen: its task, its role, and the literal prompt."""

from dataclasses import dataclass

from embedmux.server.contract import Contract, Prompts
from embedmux.server.errors import InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo
from embedmux.server.records import Role
from embedmux.server.requests import Instruction
from embedmux.server.tasks import ALIASES, TASKS, names_of
from embedmux.server.text.frames import fill

Pair = tuple[str, str]  # the literal prompts of queries and of documents, which mark a space


@dataclass(frozen=True, slots=True)
class Purpose:
    """A task by its own name and the side of it, where they are known."""

    task: str | None
    role: Role | None


def purpose_of(instruction: Instruction) -> Purpose:
    """Task and role after aliases; what contradicts itself is refused. A free instruction means a query."""
    task, implied = ALIASES.get(instruction.task or "", (instruction.task or None, None))
    if implied and instruction.role and implied is not instruction.role:
        raise InvalidRequest(
            f"task {instruction.task!r} means role {implied.value!r}, the text names role {instruction.role.value!r}"
        )
    role = instruction.role or implied
    if instruction.instruction is None:
        return Purpose(task, role)
    if role is Role.DOCUMENT:
        raise InvalidRequest(
            "an instruction stands before queries only, the text's role is 'document'; leave it out for documents, "
            "whose vectors serve every instruction"
        )
    return Purpose(task, Role.QUERY)


def purpose_of_adapter(adapter: AdapterInfo) -> Purpose:
    """What an adapter was made for; one for a side may say so by its name alone, such as ``retrieval.query``."""
    own_task = adapter.task or (adapter.id if adapter.id in TASKS else None)
    task, implied = ALIASES.get(adapter.task or adapter.id, (own_task, None))
    return Purpose(task, Role(adapter.role) if adapter.role else implied)


def pair_of(prompts: Prompts, task: str | None) -> tuple[Pair, bool]:
    """The prompts of a task's queries and documents, and whether they are the task's own rather than the model's."""
    if task:
        query, document, both = (_named(prompts, names_of(task, role)) for role in (Role.QUERY, Role.DOCUMENT, None))
        if query is not None or document is not None:
            return (query or "", document or ""), True
        if both is not None:
            return (both, both), True
    return prompts.pair, False


def _named(prompts: Prompts, names: list[str]) -> str | None:
    """The prompt with the first of these names that there is; checkpoints differ in capitals."""
    known = {name.lower(): text for name, text in prompts.by_name.items()} | prompts.by_name
    return next((known[name] for name in names if name in known), None)


def choose_prompt(instruction: Instruction, purpose: Purpose, prompts: Prompts, contract: Contract) -> tuple[str, Pair]:
    """The literal prefix, and the pair that marks the space.

    A prompt that belongs to neither side stands for a pair of its own. A free instruction in the model's template does
    not: it is made to be compared with the model's plain documents.
    """
    pair, is_own = pair_of(prompts, purpose.task)
    if not contract.takes_prompts and (instruction.prompt or instruction.prompt_name or instruction.instruction):
        raise InvalidRequest(
            "the model's pooling leaves the tokens of a prompt out, which this version does not compute; "
            "send the text without one"
        )
    if instruction.instruction is not None:
        if instruction.prompt is not None or instruction.prompt_name:
            raise InvalidRequest("the text names an instruction and a prompt; name one of them")
        return _render(instruction.instruction, contract), pair
    if instruction.prompt is not None:
        return instruction.prompt, _pair_with(instruction.prompt, pair)
    if instruction.prompt_name:
        if instruction.prompt_name not in prompts.by_name:
            known = ", ".join(sorted(prompts.by_name)) or "none"
            raise NotFound(f"prompt {instruction.prompt_name!r} is not known here; known: {known}")
        text = prompts.by_name[instruction.prompt_name]
        return text, _pair_with(text, pair)
    query, document = pair
    if purpose.role is not None:
        return (query if purpose.role is Role.QUERY else document), pair
    if prompts.default_name is not None and not is_own:
        text = prompts.by_name[prompts.default_name]
        return text, _pair_with(text, pair)
    if query == document:
        return document, pair
    if purpose.task or instruction.adapter:
        raise InvalidRequest(
            f"task {purpose.task or instruction.adapter!r} has different prompts for queries and documents; "
            "set role to query or document"
        )
    return "", _pair_with("", pair)


def _pair_with(prompt: str, pair: Pair) -> Pair:
    """A text with the prompt of one side has that side's vector, bit for bit, so it lies in its space."""
    return pair if prompt in pair else (prompt, prompt)


def _render(words: str, contract: Contract) -> str:
    if contract.template is None:
        raise InvalidRequest(
            f"models of family {contract.family!r} have no template for a free instruction; "
            "send the literal prefix as prompt, or the name of one as prompt_name"
        )
    if not words:
        raise InvalidRequest("the instruction is empty; leave it out for the model's own, or say what is looked for")
    return fill(contract.template, instruction=words)
