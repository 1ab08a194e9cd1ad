"""A model folder looked at without reading its weights: the sizes of its backbone, and its linears."""

from __future__ import annotations

from pathlib import Path

from embedmux.server.backbones import find_family
from embedmux.server.backbones.shape import Shape, targets_of
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read_contract


def model_shape(folder: Path) -> Shape:
    """The backbone's sizes; raises ModelRejected for a folder that cannot be served."""
    contract = read_contract(folder)
    return find_family(contract.architecture).read_shape(ModelFolder(folder).config())


def model_targets(folder: Path) -> dict[str, tuple[int, int]]:
    """Checkpoint name of every linear an adapter may change -> (in_features, out_features)."""
    return targets_of(model_shape(folder).linears)
