"""The op calls of a model's forward pass, without its weights: what to compile for it, whatever the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from embedmux.kernels.aot import Call, Recorder
from embedmux.server.backbones import find_family
from embedmux.server.backbones.targets import model_shape
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.packed import Batch, LowRankTables, PooledRows, Segments, SharedPrefixes, TokenStates

META = torch.device("meta")
NUM_SLOTS = 8


def forward_calls(
    folder: Path, dtype: torch.dtype, sizes: Iterable[tuple[int, int, int]], then: Callable[[TokenStates], None]
) -> list[Call]:
    """Passes over a model folder's backbone on the meta device, and what is done ``then`` with the states; calls that
    differ in nothing are told once.

    sizes: (tokens, texts, segments) of the batches. No kernel's numbers depend on them (law 1), but its way to find a
    row's sequence and adapter does.
    """
    contract = read_contract(folder)
    family, shape = find_family(contract.architecture), model_shape(folder)
    low_rank = LowRankTables(
        torch.empty(1, dtype=dtype, device="meta"),
        {linear.name: _ints(NUM_SLOTS, len(linear.slices), 3, dtype=torch.int64) for linear in shape.linears},
    )
    checkpoint = Checkpoint(folder, prefixes=family.PREFIXES, device=META)
    backbone = family.Backbone(shape, checkpoint, low_rank=low_rank, dtype=dtype)
    pool = torch.empty(shape.num_layers, NUM_SLOTS, shape.num_kv_heads, shape.head_size, dtype=dtype, device="meta")
    with torch.inference_mode(), Recorder() as recorder:
        for num_tokens, num_texts, num_segments in sizes:
            tokens, texts = _ints(num_tokens, dtype=torch.int64), _ints(num_texts, dtype=torch.int64)
            segments = Segments(_ints(num_segments + 1), _ints(num_segments))
            pooled = PooledRows(texts, segments, _ints(num_texts + 1)) if contract.pooled is not None else None
            shares = shape.is_causal and contract.shares_prefixes
            prefixes = SharedPrefixes(pool, pool, _ints(4), _ints(num_texts), tokens, tokens) if shares else None
            num_keys = _ints(num_texts) if contract.unread_token is not None else None
            offsets = _ints(num_texts + 1)
            then(backbone(Batch(tokens, tokens, tokens, offsets, segments, pooled, prefixes, num_keys)))
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
