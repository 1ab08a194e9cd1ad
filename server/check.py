"""A model folder held against its contract without reading its weights: everything but their values."""

from __future__ import annotations

from pathlib import Path

import torch

from embedmux.server.backbones import find_family
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.heads.build import build_heads
from embedmux.server.packed import LowRankTables

META = torch.device("meta")
STACKED = ".parametrizations."  # adapters that the checkpoint itself holds are read when it is served


def check(folder: Path) -> int:
    """The number of tensors in the files, of which only the headers are read.

    Raises ModelRejected for a broken file, and for a tensor of backbone or heads that is missing, left over or of
    another shape than config.json says.
    """
    contract = read_contract(folder)
    family = find_family(contract.architecture)
    shape = family.read_shape(ModelFolder(folder).config())
    low_rank = LowRankTables(
        torch.empty(1, device="meta"),
        {linear.name: torch.empty(1, len(linear.slices), 3, device="meta") for linear in shape.linears},
    )
    checkpoint = Checkpoint(folder, prefixes=family.PREFIXES, device=META, reads_headers=True)
    backbone = family.Backbone(shape, checkpoint, low_rank=low_rank, dtype=torch.float32)
    build_heads(contract, checkpoint, shape.hidden_size, backbone.words)
    checkpoint.finish(lambda name: family.is_unused(name) or STACKED in name)
    return checkpoint.num_tensors
