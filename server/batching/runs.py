"""A merged adapter has weights of its own, so its rows are a batch of their own; all other rows are one together."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace

import torch

from embedmux.server.batching.pack import Piece
from embedmux.server.packed import TokenStates
from embedmux.server.records import BASE_MODEL

# Computes pieces that all have this slot's merged weights, BASE_MODEL for the base model's.
Forward = Callable[[list[Piece], int], TokenStates]


def run_apart(pieces: list[Piece], merged: Container[int], forward: Forward) -> tuple[TokenStates, list[int]]:
    """The states of all pieces, and where among their sequences each piece stands.

    ``merged``: the slots of merged adapters. Pieces keep their order where no such slot is among them.
    """
    runs: dict[int, list[int]] = {}
    for index, piece in enumerate(pieces):
        runs.setdefault(piece.slot if piece.slot in merged else BASE_MODEL, []).append(index)
    if list(runs) == [BASE_MODEL]:
        return forward(pieces, BASE_MODEL), list(range(len(pieces)))
    found = [
        forward([pieces[i] if slot == BASE_MODEL else replace(pieces[i], slot=BASE_MODEL) for i in run], slot)
        for slot, run in runs.items()
    ]
    places = [0] * len(pieces)
    for place, index in enumerate(index for run in runs.values() for index in run):
        places[index] = place
    return _joined(found), places


def _joined(states: list[TokenStates]) -> TokenStates:
    """Sequences one after another."""
    if len(states) == 1:
        return states[0]
    offsets, end = [states[0].offsets[:1]], 0
    for each in states:
        offsets.append(each.offsets[1:] + end)
        end += each.hidden.shape[0]
    residuals = [each.residual for each in states if each.residual is not None]
    return TokenStates(
        torch.cat([each.hidden for each in states]),
        torch.cat(offsets),
        torch.cat(residuals) if residuals else None,
        states[0].norm,
    )
