"""Which tasks the texts of a load are for, and in what shares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from embedmux.client.records import ModelInfo
from embedmux.client.texts import RoleName, Text
from embedmux.server.errors import InvalidRequest

NONE = "none"  # the bare model
ROLE_NAMES: tuple[RoleName, ...] = get_args(RoleName)
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Share:
    """One task of the mix; ``task`` None is the bare model. Only the ratio of weights counts."""

    task: str | None
    role: RoleName | None
    weight: float

    @property
    def name(self) -> str:
        """As the command line writes it, without the weight."""
        return f"{self.task or NONE}:{self.role}" if self.role else self.task or NONE


def parse_share(argument: str) -> Share:
    """The share that ``TASK[:ROLE][=WEIGHT]`` asks for. Raises InvalidRequest for anything else."""
    name, has_weight, given = argument.partition("=")
    task, has_role, role = name.partition(":")
    try:
        weight = float(given) if has_weight else 1.0
    except ValueError:
        weight = 0.0
    if not task or not 0 < weight < float("inf"):
        raise InvalidRequest(f"task {argument!r} must be TASK, TASK:ROLE or TASK:ROLE=WEIGHT with a weight above 0")
    for known in ROLE_NAMES:
        if role == known:
            return Share(None if task == NONE else task, known, weight)
    if has_role:
        raise InvalidRequest(f"task {argument!r}: role is {role!r}, it must be one of {', '.join(ROLE_NAMES)}")
    return Share(None if task == NONE else task, None, weight)


def default_mix(model: ModelInfo) -> tuple[Share, ...]:
    """Every task of the model and the bare model, in equal shares; a task with two prompts has one half of each."""
    shares = []
    for task in model.tasks:
        if task.query_prompt == task.document_prompt:
            shares.append(Share(task.name, None, 1.0))
        else:
            shares += [Share(task.name, role, 0.5) for role in ROLE_NAMES]
    return (*shares, Share(None, None, 1.0))


def drawn_shares(mix: Sequence[Share], generator: np.random.Generator) -> Iterator[Share]:
    """Shares of ``mix`` without end, each by its weight."""
    weights = np.array([share.weight for share in mix])
    while True:
        for index in generator.choice(len(mix), size=BLOCK, p=weights / weights.sum()).tolist():
            yield mix[index]


def with_task(text: str, share: Share) -> Text:
    """``text`` for the task of ``share``."""
    return Text(text, task=share.task, role=share.role)
