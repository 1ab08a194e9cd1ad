"""The op calls of a model's forward pass, without its weights: what to compile for it, whatever the backbone."""

from collections.abc import Iterable
from pathlib import Path

import torch

from embedmux.kernels.aot import Call, Recorder
from embedmux.server.backbones import load_backbone
from embedmux.server.backbones.spec import load_spec
from embedmux.server.records import Batch, LowRankTables

META = torch.device("meta")
NUM_SLOTS = 8


def forward_calls(folder: Path, dtype: torch.dtype, sizes: Iterable[tuple[int, int, int]]) -> list[Call]:
    """Passes over a model folder's backbone on the meta device; calls that differ in nothing are told once.

    sizes: (tokens, texts, segments) of the batches. No kernel's numbers depend on them (law 1), but its way to find a
    row's sequence and adapter does.
    """
    spec = load_spec(folder)
    low_rank = LowRankTables(
        torch.empty(1, dtype=dtype, device="meta"),
        {linear.name: _ints(NUM_SLOTS, len(linear.slices), 3, dtype=torch.int64) for linear in spec.linears},
    )
    backbone = load_backbone(spec, folder, low_rank=low_rank, dtype=dtype, device=META)
    with torch.inference_mode(), Recorder() as recorder:
        for num_tokens, num_texts, num_segments in sizes:
            backbone(
                Batch(
                    token_ids=_ints(num_tokens, dtype=torch.int64),
                    positions=_ints(num_tokens, dtype=torch.int64),
                    offsets=_ints(num_texts + 1),
                    segment_offsets=_ints(num_segments + 1),
                    segment_slots=_ints(num_segments),
                )
            )
    return list({_key(call): call for call in recorder.calls}.values())


def _ints(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _key(call: Call) -> str:
    """What a launcher can see of a call."""
    seen = [
        (argument.shape, argument.stride(), argument.dtype) if isinstance(argument, torch.Tensor) else argument
        for argument in call.arguments
    ]
    return f"{call.op.name} {seen}"
