"""Token states -> the bytes of each text's row: its vector, and whatever else of the model's heads was asked for."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from embedmux.server.errors import EngineFailure
from embedmux.server.heads.build import Heads
from embedmux.server.heads.dense import NormedCut, Projections, encode_dense, encode_vectors, pool_rows
from embedmux.server.heads.tokens import normed_tokens
from embedmux.server.packed import TokenStates
from embedmux.server.records import Calibration, Encoding, Output, OutputSpec, Pooling

NOT_FINITE = "the model gave a vector that is not finite"
NO_BYTES = np.empty(0, dtype=np.uint8)
Row = np.ndarray | EngineFailure  # bytes as uint8


def encode_rows(
    states: TokenStates,
    places: list[int],
    token_ids: list[np.ndarray],
    specs: list[tuple[OutputSpec, Calibration | None]],
    pooling: Pooling,
    heads: Heads,
) -> list[Row]:
    """One little-endian row per text, or why it has none: its vector is not finite.

    places [n]: where each text stands among the sequences of the states; token_ids and specs [n]: its tokens, and what
    becomes of it. Texts that share a spec and a calibration are encoded in one call; no row depends on the others.
    """
    groups = _group(specs)
    is_whole = places == list(range(states.offsets.shape[0] - 1))
    found: list[torch.Tensor] = []
    for members in groups:
        spec, calibration = specs[members[0]]
        chosen = None
        if len(groups) > 1 or not is_whole:
            chosen = _to_device([places[index] for index in members], states.offsets.device)
        found += _encode_pooled(states, chosen, spec, calibration, pooling, heads)
    on_host = iter(_fetch(found))
    rows: list[Row] = [NO_BYTES] * len(specs)
    for members, codes, finite in zip(groups, on_host, on_host, strict=True):
        packed = codes.view(torch.uint8).numpy()
        for index, row, is_finite in zip(members, packed, finite.tolist(), strict=True):
            rows[index] = row if is_finite else EngineFailure(NOT_FINITE)
    for members in groups:
        spec = specs[members[0]][0]
        if Output.SPARSE in spec.outputs or Output.TOKENS in spec.outputs:
            _add_tokens(rows, members, states, places, token_ids, spec, heads)
    return rows


def encode_all_kinds(states: TokenStates, pooling: Pooling) -> None:
    """One call of every kind that pooling knows: dimensions and counts change no kernel."""
    width = states.hidden.shape[1]
    ranges = states.hidden.new_zeros(2, width, dtype=torch.float32)
    for encoding in Encoding:
        for chosen in (None, states.offsets[:1]):
            encode_dense(states, chosen, OutputSpec(width, encoding), ranges, pooling)


def _group(specs: list[tuple[OutputSpec, Calibration | None]]) -> list[list[int]]:
    """The places of equal specs together. Most of a batch share one object, and hashing takes longer than a look."""
    groups: dict[tuple[OutputSpec, str], list[int]] = defaultdict(list)
    seen: dict[tuple[int, int], list[int]] = {}
    for index, (spec, calibration) in enumerate(specs):
        identity = (id(spec), id(calibration))
        if identity not in seen:
            seen[identity] = groups[spec, calibration.id if calibration else ""]
        seen[identity].append(index)
    return list(groups.values())


def _encode_pooled(
    states: TokenStates,
    chosen: torch.Tensor | None,
    spec: OutputSpec,
    calibration: Calibration | None,
    pooling: Pooling,
    heads: Heads,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [m, width] and finiteness [m] of what is one row a text: the vector, or a reranker's logit."""
    ranges = calibration.ranges if calibration else None
    if Output.SCORE in spec.outputs:
        assert heads.score is not None
        logits = heads.score(pool_rows(states, chosen, pooling))
        return logits.contiguous()[:, None], logits.isfinite()
    if Output.DENSE not in spec.outputs:  # only whether the states are numbers
        rows = pool_rows(states, chosen, pooling)
        return rows[:, :0].contiguous(), rows.isfinite().all(1)
    is_own_size = isinstance(heads.dense, NormedCut | Projections) and spec.dimensions == states.hidden.shape[1]
    if heads.dense is None or is_own_size:
        return encode_dense(states, chosen, spec, ranges, pooling)
    vectors = heads.dense(pool_rows(states, chosen, pooling), spec.dimensions)
    return encode_vectors(vectors, spec.dimensions, spec.encoding.value, ranges)


def _add_tokens(
    rows: list[Row],
    members: list[int],
    states: TokenStates,
    places: list[int],
    token_ids: list[np.ndarray],
    spec: OutputSpec,
    heads: Heads,
) -> None:
    """Puts sparse weights and token vectors behind the vectors of these texts, padded to the size of their rows."""
    offsets = states.offsets.tolist()
    ids, starts = [token_ids[index] for index in members], [offsets[places[index]] for index in members]
    tokens = normed_tokens(states)
    sparse = heads.sparse(tokens, ids, starts) if heads.sparse and Output.SPARSE in spec.outputs else None
    vectors = (
        heads.tokens(tokens, ids, starts, spec.encoding) if heads.tokens and Output.TOKENS in spec.outputs else None
    )
    for place, index in enumerate(members):
        dense = rows[index]
        if isinstance(dense, EngineFailure):
            continue
        parts = [dense]
        if sparse is not None:
            kinds, weights = sparse[place]
            parts += _padded(len(kinds), [kinds, weights], spec.part_bytes(Output.SPARSE, len(ids[place])))
        if vectors is not None:
            own = vectors[place]
            parts += _padded(len(own), [own], spec.part_bytes(Output.TOKENS, len(ids[place])))
        rows[index] = np.concatenate(parts)


def _padded(count: int, arrays: list[np.ndarray], size: int) -> list[np.ndarray]:
    """A uint32 count, the arrays' bytes, and zeros up to ``size`` bytes."""
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    used = 4 + sum(map(len, flat))
    return [np.array([count], dtype="<u4").view(np.uint8), *flat, np.zeros(size - used, dtype=np.uint8)]


def _to_device(numbers: list[int], device: torch.device) -> torch.Tensor:
    host = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def _fetch(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the host: on CUDA the one wait of a batch, for all its copies together."""
    if not tensors[0].is_cuda:
        return tensors
    copies = [torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
