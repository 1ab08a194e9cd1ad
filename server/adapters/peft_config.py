"""adapter_config.json as PEFT 0.21 reads it: which modules an adapter updates, with which rank and scale.

Whatever would change a vector in a way the low-rank kernel does not compute is refused by supported.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from embedmux.server.adapters.files import reject, shown
from embedmux.server.adapters.patterns import Pattern
from embedmux.server.adapters.supported import refuse_unsupported

ALL_LINEAR = "all-linear"
MAX_PATTERNS = 1024  # each is tried on each module


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What an adapter updates. Module names are those PEFT sees: the prefix inside the PEFT model, then the target."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    ranks: tuple[tuple[Pattern, int], ...]
    alphas: tuple[tuple[Pattern, float], ...]
    targets: Pattern | frozenset[str] | None  # None: every linear
    excludes: Pattern | frozenset[str]
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]

    def selects(self, module: str) -> bool:
        """Whether PEFT would put LoRA on this linear."""
        if _covers(self.excludes, module):
            return False
        if self.targets is None:
            return True
        if not isinstance(self.targets, Pattern) and module in self.targets:
            return True  # a module listed by its whole name is selected whatever layers_to_transform says
        return _covers(self.targets, module) and (self.layers is None or self._layer(module) in self.layers)

    def rank_of(self, module: str) -> int:
        """The rank of a module: the first pattern that matches, else ``r``."""
        return next((rank for pattern, rank in self.ranks if pattern.fullmatch(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What B(A x) is multiplied with: alpha / r, or alpha / sqrt(r) when rank-stabilized."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.fullmatch(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank

    def _layer(self, module: str) -> int | None:
        """The layer number PEFT reads from a module name: the first one, below a named list or below any."""
        expressions = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = (re.match(expression, module) for expression in expressions)
        return next((int(match[1]) for match in found if match), None)


def _covers(wanted: Pattern | frozenset[str], module: str) -> bool:
    if isinstance(wanted, Pattern):
        return wanted.fullmatch(module)
    parts = module.split(".")
    return any(".".join(parts[start:]) in wanted for start in range(len(parts)))


def parse(config: dict[str, object], owner: str) -> PeftConfig:
    """The parsed config, or a refusal that names the key, its value and the reason."""
    refuse_unsupported(config, owner)
    targets = _modules(config, "target_modules", owner)
    if targets is None:
        reject(
            owner, "target_modules is missing; PEFT's per-architecture defaults are not guessed, so list the modules"
        )
    layers = _layers(config, owner)
    patterns = _layers_patterns(config, owner)
    has_layers = config.get("layers_to_transform") is not None
    if isinstance(targets, str) and (has_layers or patterns):
        reject(owner, "layers_to_transform and layers_pattern need target_modules as a list, as in PEFT")
    if patterns and not has_layers:
        reject(owner, "layers_pattern needs layers_to_transform, as in PEFT")
    excludes = _modules(config, "exclude_modules", owner)
    return PeftConfig(
        rank=_rank(config.get("r", 8), "r", owner),
        alpha=_alpha(config.get("lora_alpha", 8), "lora_alpha", owner),
        is_rank_stabilized=bool(config.get("use_rslora")),
        ranks=tuple(
            (_module_pattern(key, "rank_pattern", owner), _rank(value, f"rank_pattern[{shown(key)}]", owner))
            for key, value in _mapping(config, "rank_pattern", owner).items()
        ),
        alphas=tuple(
            (_module_pattern(key, "alpha_pattern", owner), _alpha(value, f"alpha_pattern[{shown(key)}]", owner))
            for key, value in _mapping(config, "alpha_pattern", owner).items()
        ),
        targets=_wanted(targets, "target_modules", owner),
        excludes=_wanted(excludes, "exclude_modules", owner) or frozenset(),
        layers=layers,
        layers_patterns=patterns,
    )


def _rank(value: object, key: str, owner: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        reject(owner, f"{key} is {shown(value)}; a rank must be a positive integer")
    return value


def _alpha(value: object, key: str, owner: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        reject(owner, f"{key} is {shown(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        reject(owner, f"{key} is {shown(value)}, not a finite number")
    return number


def _mapping(config: dict[str, object], key: str, owner: str) -> dict[str, object]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        reject(owner, f"{key} is {shown(value)}, not an object of patterns")
    if len(value) > MAX_PATTERNS:
        reject(
            owner, f"{key} has {len(value)} patterns, the limit is {MAX_PATTERNS}; let one pattern match many modules"
        )
    return value


def _modules(config: dict[str, object], key: str, owner: str) -> str | list[str] | None:
    value = config.get(key)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        reject(owner, f"{key} is {shown(value)}, not a list of module names or a regular expression")
    return value


def _wanted(modules: str | list[str] | None, key: str, owner: str) -> Pattern | frozenset[str] | None:
    if isinstance(modules, str):
        if key == "target_modules" and modules.lower() == ALL_LINEAR:
            return None
        return Pattern(modules, key, owner) if modules or key == "target_modules" else frozenset()
    return frozenset(modules or ())


def _module_pattern(source: str, key: str, owner: str) -> Pattern:
    return Pattern(source, key, owner, is_suffix=True)


def _layers(config: dict[str, object], owner: str) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        reject(owner, f"layers_to_transform is {shown(value)}, not a layer number or a list of them")
    return frozenset(numbers)


def _layers_patterns(config: dict[str, object], owner: str) -> tuple[str, ...]:
    value = config.get("layers_pattern") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in names):
        reject(owner, f"layers_pattern is {shown(value)}; only plain names of layer lists such as 'layers' are served")
    return tuple(names)
