"""Backbones by architecture, imported only when one is asked for: spec.py is read where torch must not be loaded."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from embedmux.server.backbones.spec import Spec

if TYPE_CHECKING:
    import torch

    from embedmux.server.backbones.bert import Bert
    from embedmux.server.records import LowRankTables

ARCHITECTURES = {"bert": ("embedmux.server.backbones.bert", "Bert")}


def load_backbone(
    spec: Spec, folder: Path, *, low_rank: "LowRankTables", dtype: "torch.dtype", device: "torch.device"
) -> "Bert":
    """The backbone of a model folder with its weights on the device, ready to run."""
    module, name = ARCHITECTURES[spec.architecture]
    backbone: Bert = getattr(importlib.import_module(module), name)(
        spec, folder, low_rank=low_rank, dtype=dtype, device=device
    )
    return backbone
