"""What one training run is made of, and the recipe of each task."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a task when the caller gives none; found on held-back training data, never on a test part."""

    rank: int
    steps: int
    batch_size: int
    learning_rate: float
    prompts: dict[str, str]
    anchor: float = 0.0  # weight of the pull towards the bare model, losses.drift
    check_every: int = 40


RECIPES = {
    "retrieval": Recipe(16, 160, 32, 2e-4, {"query": "query: ", "document": "document: "}),
    "text-matching": Recipe(8, 320, 64, 1e-4, {}),
    "classification": Recipe(16, 240, 96, 3e-4, {}),
    "clustering": Recipe(12, 80, 96, 1e-4, {}, anchor=20.0, check_every=20),
}


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One LoRA adapter to train. `max_minutes` limits wall time; a run that it ends cannot be repeated exactly."""

    task: str
    model: str
    data: Path
    rank: int
    alpha: float
    steps: int
    batch_size: int
    learning_rate: float
    prompts: dict[str, str]
    anchor: float = 0.0
    seed: int = 42
    max_minutes: float = 30.0
    max_tokens: int = 128
    max_examples: int = 1500
    check_every: int = 40
    patience: int = 4
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train."""
        if self.task not in RECIPES:
            raise ValueError(f"task {self.task!r} is not known; the tasks are {', '.join(RECIPES)}")
        for name in ("rank", "steps", "batch_size", "max_tokens", "max_examples", "check_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, the least is 1")
        if self.anchor < 0:
            raise ValueError(f"anchor is {self.anchor}, the least is 0: no pull towards the bare model")
        for name in ("alpha", "learning_rate", "max_minutes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be above 0")
        if self.batch_size < 4:
            raise ValueError(f"batch_size is {self.batch_size}, contrastive batches need 4 or more")
