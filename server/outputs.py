"""Token states -> packed vector bytes: pool, cut to dimensions, normalise, encode."""

from collections import defaultdict

import numpy as np
import torch

from embedmux.kernels import ops
from embedmux.server.errors import EngineFailure
from embedmux.server.records import Calibration, Encoding, OutputSpec, Pooling


def encode_rows(
    states: torch.Tensor,
    offsets: torch.Tensor,
    specs: list[tuple[OutputSpec, Calibration | None]],
    pooling: Pooling,
) -> list[np.ndarray]:
    """One little-endian uint8 row per sequence.

    states [T, hidden], offsets [n + 1] int32, specs [n]: what each sequence's vector becomes. Rows are pooled once per
    size and encoded once per encoding and calibration; neither depends on the other rows.
    """
    rows: list[np.ndarray] = [np.empty(0, dtype=np.uint8)] * len(specs)
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, (spec, _) in enumerate(specs):
        by_size[spec.dimensions].append(index)
    for dimensions, members in by_size.items():
        vectors = ops.pool_normalize.handle(states, offsets, pooling.value, dimensions, True)
        by_code: dict[tuple[Encoding, str], list[int]] = defaultdict(list)
        for index in members:
            spec, calibration = specs[index]
            by_code[spec.encoding, calibration.id if calibration else ""].append(index)
        for (encoding, _), sharing in by_code.items():
            chosen = vectors if len(sharing) == len(specs) else vectors[sharing]
            calibration = specs[sharing[0]][1]
            packed = _encode(chosen, encoding, calibration)
            for index, row in zip(sharing, packed, strict=True):
                rows[index] = row
    return rows


def _encode(vectors: torch.Tensor, encoding: Encoding, calibration: Calibration | None) -> np.ndarray:
    """vectors [n, dimensions] float32 -> uint8 [n, row_bytes]; refuses what is not finite."""
    if not bool(torch.isfinite(vectors).all()):
        raise EngineFailure("the model gave a vector that is not finite")
    if encoding is Encoding.FLOAT32:
        codes = vectors.contiguous()
    else:
        codes = ops.quantize_rows.handle(vectors, encoding.value, calibration.ranges if calibration else None)
    packed: np.ndarray = codes.cpu().view(torch.uint8).numpy()
    return packed
