"""A PEFT folder on disk becomes one immutable Adapter, or a refusal that names the module and the reason.

Only safetensors and JSON are read. Every tensor of the file must belong to a module the config selects, and every
selected module must have both factors: nothing is dropped and nothing is filled in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from embedmux.server.adapters import peft_config
from embedmux.server.adapters.calibration import read_calibrations
from embedmux.server.adapters.files import find, find_folder, read_object, reject, shown
from embedmux.server.adapters.layout import Layout, check_shapes, lay_out
from embedmux.server.adapters.task import NAME, read_prompts, read_task
from embedmux.server.adapters.tensors import Shapes, read_tensors
from embedmux.server.records import Adapter, LowRank

__all__ = ["list_adapter_folders", "read_adapter", "read_calibrations"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def list_adapter_folders(root: Path) -> list[Path]:
    """Sub-folders with an adapter_config.json, sorted by name; others, such as the bare model's ``base``, are left."""
    if not root.is_dir():
        reject(f"adapter root {str(root)!r}", "is not a folder; create it or name another one")
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and (folder / CONFIG).exists())


def read_adapter(
    path: Path,
    targets: Mapping[str, tuple[int, int]],
    *,
    root: Path | None = None,
    adapter_id: str | None = None,
    max_rank: int = 256,
) -> Adapter:
    """The validated adapter in the folder ``path``; its factors are float32 on the CPU.

    ``targets``: (in_features, out_features) by the linear's checkpoint name without prefix. ``root``: every file must
    lie inside it once links are followed. ``adapter_id``: the folder's name when left out. Raises AdapterRejected.
    """
    name = path.name if adapter_id is None else adapter_id
    owner = f"adapter {shown(name)}"
    if not NAME.fullmatch(name):
        reject(owner, "an id is 1 to 128 letters, digits, '.', '_' or '-' and starts with a letter or digit; rename it")
    folder = find_folder(path, owner, root)
    config_path = find(folder, CONFIG, owner, root)
    if config_path is None:
        reject(owner, f"{CONFIG!r} is missing; save the adapter with PEFT's save_pretrained")
    config = peft_config.parse(read_object(config_path, owner), owner)
    layouts: list[Layout] = []

    def accept(shapes: Shapes) -> None:
        layouts.append(lay_out(shapes, config, targets, owner))
        check_shapes(shapes, layouts[0], config, targets, owner, max_rank=max_rank)

    tensors = read_tensors(_weights(folder, owner, root), owner, accept)
    layout = layouts[0]
    scales = {target: config.scale_of(layout.module(target)) for target in layout.targets}
    low_rank = {target: _low_rank(tensors, layout, target, scales[target], owner) for target in layout.targets}
    return Adapter(
        id=name,
        digest=_digest(tensors, layout, scales),
        path=str(folder),
        task=read_task(folder, owner, root),
        prompts=read_prompts(folder, owner, root),
        targets=low_rank,
        calibrations=read_calibrations(folder / "calibration.safetensors", owner, root),
        max_rank=max(len(update.a) for update in low_rank.values()),
        num_bytes=sum(4 * (update.a.numel() + update.b.numel()) for update in low_rank.values()),
    )


def _weights(folder: Path, owner: str, root: Path | None) -> Path:
    weights = find(folder, WEIGHTS, owner, root)
    if weights is None:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            reject(owner, f"{shown(pickles[0])} is a pickle, which is never opened; save the weights as {WEIGHTS!r}")
        reject(owner, f"{WEIGHTS!r} is missing; save the adapter with PEFT's save_pretrained")
    return weights


def _low_rank(tensors: dict[str, torch.Tensor], layout: Layout, target: str, scale: float, owner: str) -> LowRank:
    """One target's factors in float32, checked to stay finite with the scale folded into B."""
    a, b = (tensors[layout.factor(target, letter)].to(torch.float32) for letter in "AB")
    for letter, factor in (("A", a), ("B", b)):
        if not math.isfinite(_largest(factor)):
            reject(owner, f"module {target!r} has NaN or infinity in factor {letter}; train it again")
    if _largest(b) * abs(scale) > torch.finfo(torch.float32).max:
        reject(owner, f"module {target!r} overflows float32 once factor B is multiplied with its scale {scale}")
    return LowRank(a, b, scale)


def _largest(factor: torch.Tensor) -> float:
    """The largest absolute value, NaN if there is one. By numpy, which takes no threads from a running batch."""
    return float(np.abs(factor.numpy()).max())


def _digest(tensors: dict[str, torch.Tensor], layout: Layout, scales: dict[str, float]) -> str:
    """sha256 over what determines vectors: per target, in name order, dtypes, shapes, scale and the stored bytes."""
    digest = hashlib.sha256()
    for target in layout.targets:
        a, b = (tensors[layout.factor(target, letter)] for letter in "AB")
        # repr of a float is exact, and the line fixes the length of the bytes that follow it.
        digest.update(f"{target} {a.dtype} {tuple(a.shape)} {b.dtype} {tuple(b.shape)} {scales[target]!r}\n".encode())
        for factor in (a, b):
            digest.update(factor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
