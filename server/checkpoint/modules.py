"""The modules of sentence-transformers: modules.json and the folders it names, for what stands around the backbone."""

from __future__ import annotations

from dataclasses import dataclass

from embedmux.server.checkpoint.folder import Config, ModelFolder
from embedmux.server.records import Pooling

POOLINGS = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
FLAG_NAMES = {"cls_token": "cls", "mean_tokens": "mean"}  # pooling_mode_X: true, and the mode's name now
ACTIVATIONS = ("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh")
ROOMS = ("sentence_transformers.", "pylate.")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear behind the pooling: the folder it lies in and its widths."""

    folder: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Modules:
    """What modules.json lists. ``pooling`` None where it lists none; ``custom`` are classes of the checkpoint's own."""

    is_listed: bool = False
    pooling: Pooling | None = None
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False
    custom: tuple[str, ...] = ()
    scores: Config | None = None  # the config of a LogitScore module
    masks: Config | None = None  # the config of a MultiVectorMask module


def read_modules(folder: ModelFolder) -> Modules:
    """modules.json, and the config of every folder that it names.

    Raises ModelRejected, naming the module, for one that is not computed here; ``custom`` is the caller's to judge.
    """
    pooling: Pooling | None = None
    dense: list[Dense] = []
    custom: list[str] = []
    normalizes = False
    scores: Config | None = None
    masks: Config | None = None
    for entry in _entries(folder):
        kind, path = entry
        name = kind.rpartition(".")[2]
        if not kind.startswith(ROOMS):
            custom.append(kind)
        elif name == "Pooling":
            pooling = _pooling(folder.config(f"{path}/config.json"))
        elif name == "Dense":
            dense.append(_dense(folder, path))
        elif name == "Normalize":
            normalizes = True
        elif name == "LogitScore":
            scores = folder.config(f"{path}/config.json")
        elif name == "MultiVectorMask":
            masks = folder.config(f"{path}/config.json")
        elif name != "Transformer":
            folder.reject(f"modules.json: module {kind} is not computed by this version")
    # Older folders have 1_Pooling and no modules.json.
    if pooling is None and not folder.has("modules.json") and folder.has("1_Pooling/config.json"):
        pooling = _pooling(folder.config("1_Pooling/config.json"))
    return Modules(folder.has("modules.json"), pooling, tuple(dense), normalizes, tuple(custom), scores, masks)


def _entries(folder: ModelFolder) -> list[tuple[str, str]]:
    """(class, sub-folder) of every module in the order they run."""
    found: list[tuple[str, str]] = []
    for entry in folder.array("modules.json", optional=True):
        kind = entry.get("type") if isinstance(entry, dict) else None
        path = entry.get("path", "") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or not isinstance(path, str):
            folder.reject(f"modules.json: {entry!r} must be an object with type and path")
        if path.startswith("/") or ".." in path.split("/"):
            folder.reject(f"modules.json: path {path!r} leads out of the folder")
        found.append((kind, path.strip("/")))
    return found


def _pooling(config: Config) -> Pooling:
    """The one pooling mode, in the old form (flags) and the new one (a name)."""
    named = config.get("pooling_mode")
    if named is None:
        flags = [key.removeprefix("pooling_mode_") for key, is_on in config.values.items() if is_on is True]
        flags = [flag for flag in flags if f"pooling_mode_{flag}" in config.values]
        modes = [FLAG_NAMES.get(flag, flag) for flag in flags] or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(config.strings("pooling_mode"))
    if len(modes) != 1 or modes[0] not in POOLINGS:
        config.folder.reject(f"{config.file}: pooling {modes} must be one of {sorted(POOLINGS)}")
    if not config.flag("include_prompt", True):
        config.folder.reject(
            f"{config.file}: include_prompt is false: the prompt's tokens would have to be left out of the pooling, "
            "which this version does not do"
        )
    return POOLINGS[modes[0]]


def _dense(folder: ModelFolder, path: str) -> Dense:
    config = folder.config(f"{path}/config.json")
    config.require("activation_function", *ACTIVATIONS)
    config.require("use_residual", False)
    if not folder.has(f"{path}/model.safetensors"):
        folder.reject(f"{path}/model.safetensors is missing; other formats are not read (no pickle)")
    return Dense(path, config.integer("in_features"), config.integer("out_features"))
