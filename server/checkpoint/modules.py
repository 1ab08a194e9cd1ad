"""The modules of sentence-transformers: modules.json and the folders it names, for what stands around the backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from embedmux.server.checkpoint.folder import Config, ModelFolder
from embedmux.server.records import Pooling

POOLINGS = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
FLAG_NAMES = {"cls_token": "cls", "mean_tokens": "mean"}  # pooling_mode_X: true, and the mode's name now
IDENTITY = "torch.nn.modules.linear.Identity"
ROOMS = ("sentence_transformers.", "pylate.")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear behind the pooling: the folder it lies in and its widths."""

    folder: str
    in_features: int
    out_features: int


@dataclass(slots=True)
class Modules:
    """What modules.json lists. ``custom`` are classes of the checkpoint's own; the configs are None where none is."""

    is_listed: bool = False
    pooling: Pooling | None = None
    includes_prompt: bool = True
    dense: list[Dense] = field(default_factory=list)
    normalizes: bool = False
    custom: list[str] = field(default_factory=list)
    scores: Config | None = None  # of a LogitScore module
    masks: Config | None = None  # of a MultiVectorMask module


def read_modules(folder: ModelFolder) -> Modules:
    """modules.json, and the config of every folder that it names.

    Raises ModelRejected, naming the module, for one that is not computed here; ``custom`` is the caller's to judge.
    """
    found = Modules(is_listed=folder.has("modules.json"))
    for kind, path in _entries(folder):
        name = kind.rpartition(".")[2]
        if not kind.startswith(ROOMS):
            found.custom.append(kind)
        elif name == "Pooling":
            _add_pooling(found, folder.config(f"{path}/config.json"))
        elif name == "Dense":
            found.dense.append(_dense(folder, path))
        elif name == "Normalize":
            found.normalizes = True
        elif name == "LogitScore":
            found.scores = folder.config(f"{path}/config.json")
        elif name == "MultiVectorMask":
            found.masks = folder.config(f"{path}/config.json")
        elif name != "Transformer":
            folder.reject(f"modules.json: module {kind} is not computed by this version")
    if not found.is_listed and folder.has("1_Pooling/config.json"):  # as the oldest folders have it
        _add_pooling(found, folder.config("1_Pooling/config.json"))
    return found


def _entries(folder: ModelFolder) -> list[tuple[str, str]]:
    """(class, sub-folder) of every module in the order they run."""
    found: list[tuple[str, str]] = []
    for entry in folder.array("modules.json", optional=True):
        kind, path = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            folder.reject(f"modules.json: {entry!r} must be an object with type and path")
        if path.startswith("/") or ".." in path.split("/"):
            folder.reject(f"modules.json: path {path!r} leads out of the folder")
        found.append((kind, path.strip("/")))
    return found


def _add_pooling(modules: Modules, config: Config) -> None:
    """The one pooling mode, in the old form (flags) and the new one (a name)."""
    if config.get("pooling_mode") is None:
        flags = [key.removeprefix("pooling_mode_") for key, on in config.values.items() if _is_active(key, on)]
        modes = [FLAG_NAMES.get(flag, flag) for flag in flags] or ["mean"]
    elif isinstance(config.get("pooling_mode"), str):
        modes = [config.string("pooling_mode")]
    else:
        modes = list(config.strings("pooling_mode"))
    if len(modes) != 1 or modes[0] not in POOLINGS:
        config.folder.reject(f"{config.file}: pooling {modes} must be one of {sorted(POOLINGS)}")
    modules.pooling = POOLINGS[modes[0]]
    modules.includes_prompt = config.flag("include_prompt", True)


def _is_active(key: str, value: Any) -> bool:
    return key.startswith("pooling_mode_") and value is True


def _dense(folder: ModelFolder, path: str) -> Dense:
    config = folder.config(f"{path}/config.json")
    config.require("activation_function", IDENTITY)
    config.require("use_residual", False)
    if not folder.has(f"{path}/model.safetensors"):
        folder.reject(f"{path}/model.safetensors is missing; other formats are not read (no pickle)")
    return Dense(path, config.integer("in_features"), config.integer("out_features"))
