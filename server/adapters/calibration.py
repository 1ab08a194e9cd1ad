"""calibration.safetensors: the per-dimension ranges that int8 and uint8 codes are made with."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from embedmux.server.adapters.files import find, reject, shown
from embedmux.server.adapters.tensors import Shapes, read_tensors
from embedmux.server.records import Calibration


def calibration_id(dimensions: int, ranges: torch.Tensor) -> str:
    """12 hex characters that tell ranges apart: sha256 over the dimensions and the little-endian float32 bytes."""
    content = ranges.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
    return hashlib.sha256(f"{dimensions}:".encode() + content).hexdigest()[:12]


def read_calibrations(path: Path, owner: str, root: Path | None = None) -> dict[int, Calibration]:
    """Calibrations by dimensions from a safetensors file; empty when there is no such file.

    Each tensor is named by its dimensions ("384") and holds float32 [2, dimensions]: minima, then maxima.
    ``owner`` starts every message: "adapter 'legal'" or "the bare model". Raises AdapterRejected.
    """
    real = find(path.parent, path.name, owner, root)
    if real is None:
        return {}
    where = f"{owner}: {path.name!r}"

    def accept(shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if not re.fullmatch("[1-9][0-9]{0,5}", name):
                reject(where, f"tensor {shown(name)} is not named by its dimensions, such as '384'")
            if shape != (2, int(name)):
                reject(where, f"tensor {name!r} has shape {list(shape)}, wanted [2, {name}] (minima, maxima)")

    calibrations = {}
    for name, ranges in read_tensors(real, owner, accept).items():
        if ranges.dtype != torch.float32:
            reject(where, f"tensor {name!r} has dtype {ranges.dtype}, wanted float32")
        if not bool(ranges.isfinite().all()):
            reject(where, f"tensor {name!r} holds NaN or infinity; calibrate again")
        wrong = (ranges[0] > ranges[1]).nonzero()
        if len(wrong):
            place = int(wrong[0])
            low, high = float(ranges[0, place]), float(ranges[1, place])
            reject(where, f"tensor {name!r} has minimum {low} above maximum {high} in dimension {place}")
        calibrations[int(name)] = Calibration(calibration_id(int(name), ranges), int(name), ranges)
    return calibrations
