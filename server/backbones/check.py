"""A model folder looked at without reading its weights: its linears, and whether its tensors fit its configuration."""

from __future__ import annotations

from pathlib import Path

import torch

from embedmux.server.backbones import find_family
from embedmux.server.backbones.shape import Shape, targets_of
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read_contract


def model_shape(folder: Path) -> Shape:
    """The backbone's sizes; raises ModelRejected for a folder that cannot be served."""
    contract = read_contract(folder)
    return find_family(contract.architecture).read_shape(ModelFolder(folder).config())


def model_targets(folder: Path) -> dict[str, tuple[int, int]]:
    """Checkpoint name of every linear an adapter may change -> (in_features, out_features)."""
    return targets_of(model_shape(folder).linears)


def check(folder: Path) -> int:
    """The number of tensors in the files, of which only the headers are read.

    Raises ModelRejected for a broken file, and for a linear of the backbone that is missing or of another shape than
    config.json says.
    """
    contract = read_contract(folder)
    family = find_family(contract.architecture)
    targets = targets_of(family.read_shape(ModelFolder(folder).config()).linears)
    checkpoint = Checkpoint(folder, prefixes=family.PREFIXES, device=torch.device("cpu"))
    for name, (in_features, out_features) in targets.items():
        checkpoint.expect(f"{name}.weight", (out_features, in_features))
    return checkpoint.num_tensors
