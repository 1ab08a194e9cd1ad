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
) -> list[np.ndarray | EngineFailure]:
    """One little-endian uint8 row per sequence, or why it has none: its vector is not finite.

    states [T, hidden], offsets [n + 1] int32, specs [n]: what each sequence's vector becomes. Sequences that share
    size, encoding and calibration are encoded in one call; no row depends on the others.
    """
    groups: dict[tuple[OutputSpec, str], list[int]] = defaultdict(list)
    for index, (spec, calibration) in enumerate(specs):
        groups[spec, calibration.id if calibration else ""].append(index)
    on_cuda = offsets.is_cuda
    found: list[torch.Tensor] = []
    for (spec, _), members in groups.items():
        calibration = specs[members[0]][1]
        chosen = None
        if len(groups) > 1:
            chosen = torch.tensor(members, dtype=torch.int32, pin_memory=on_cuda).to(offsets.device, non_blocking=True)
        found += encode_group(states, offsets, chosen, spec, calibration.ranges if calibration else None, pooling)
    on_host = iter(_fetch(found))
    rows: list[np.ndarray | EngineFailure] = [np.empty(0, dtype=np.uint8)] * len(specs)
    for members, codes, finite in zip(groups.values(), on_host, on_host, strict=True):
        packed = codes.view(torch.uint8).numpy()
        for index, row, is_finite in zip(members, packed, finite.tolist(), strict=True):
            rows[index] = row if is_finite else EngineFailure("the model gave a vector that is not finite")
    return rows


def encode_group(
    states: torch.Tensor,
    offsets: torch.Tensor,
    chosen: torch.Tensor | None,
    spec: OutputSpec,
    ranges: torch.Tensor | None,
    pooling: Pooling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and finiteness of the chosen sequences (None: all), in one call; see ``pool_encode``."""
    found: tuple[torch.Tensor, torch.Tensor] = ops.pool_encode.handle(
        states, None, None, None, 0.0, "none", offsets, chosen, pooling.value, spec.dimensions, True,
        spec.encoding.value, ranges,
    )  # fmt: skip
    return found


def encode_all_kinds(states: torch.Tensor, offsets: torch.Tensor, pooling: Pooling) -> None:
    """One call of every kind ``encode_group`` knows: dimensions and counts change no kernel."""
    width = states.size(1)
    ranges = states.new_zeros(2, width, dtype=torch.float32)
    for encoding in Encoding:
        for chosen in (None, offsets[:1]):
            encode_group(states, offsets, chosen, OutputSpec(width, encoding), ranges, pooling)


def _fetch(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the host: on CUDA the one wait of a batch, for all its copies together."""
    if not tensors[0].is_cuda:
        return tensors
    copies = [torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
