"""Adapters merged into copies of the weights they change: a text pays nothing for its adapter, memory pays for it.

The sum W + scale B A is taken in float32 from the checkpoint's own values and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from embedmux.server.adapters.arena import AdapterArena, StagedAdapter
from embedmux.server.adapters.files import reject
from embedmux.server.backbones.layers import LoraLinear, Weight, read_slices
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.errors import ModelRejected
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Adapter

Staged = dict[str, Weight]  # by the linear's name


class MergedWeights:
    """Makes and places the weights of merged adapters. ``open_checkpoint``: the base weights are not kept plain.

    What an adapter changes in a look-up stays low-rank, in the arena: there is no product that merging could save.
    """

    def __init__(
        self, arena: AdapterArena, loaded: Mapping[str, LoraLinear], open_checkpoint: Callable[[], Checkpoint]
    ) -> None:
        self._arena = arena
        self._linears = arena.linears
        self._loaded = loaded
        self._open_checkpoint = open_checkpoint
        self.slots: set[int] = set()

    def num_bytes(self, adapter: Adapter) -> int:
        """What its weights will take, known before they are made: a copy is laid out as the base model's weight."""
        return sum(_num_bytes(self._loaded[linear.name].base) for linear in self._touched(adapter))

    def stage(self, adapter: Adapter) -> tuple[StagedAdapter, Staged]:
        """The adapter as the arena counts it, and its weights; those it does not change stay the base model's.

        Touches no shared state. Raises AdapterRejected for what cannot be merged.
        """
        owner = f"adapter {adapter.id!r}"
        known = {target for linear in self._linears for target in linear.targets}
        if unknown := sorted(adapter.targets.keys() - known):
            reject(owner, f"module {unknown[0]!r} is not a linear of this backbone")
        lookups = {target for linear in self._linears if linear.is_lookup for target in linear.targets}
        kept = {target: update for target, update in adapter.targets.items() if target in lookups}
        staged = self._arena.stage(replace(adapter, targets=kept))
        try:
            checkpoint = self._open_checkpoint()
            weights = {
                linear.name: self._merge(linear, adapter, checkpoint, owner) for linear in self._touched(adapter)
            }
        except ModelRejected as error:
            reject(owner, f"the weights it is to be merged with cannot be read again: {error}")
        num_bytes = sum(_num_bytes(weight) for weight in weights.values())
        return replace(staged, merged_bytes=num_bytes), weights

    def place(self, slot: int, staged: Staged) -> None:
        """From here on the slot's rows are computed with these weights; nobody may have the slot yet."""
        for name, weight in staged.items():
            self._loaded[name].merged[slot] = weight
        self.slots.add(slot)

    def evict(self, slot: int) -> None:
        """Gives the weights' memory back; nobody may be reading it. Nothing for a slot that is not merged."""
        self.slots.discard(slot)
        for linear in self._loaded.values():
            linear.merged.pop(slot, None)

    def _touched(self, adapter: Adapter) -> list[FusedLinear]:
        """The products that the adapter changes."""
        return [
            linear
            for linear in self._linears
            if not linear.is_lookup and not adapter.targets.keys().isdisjoint(linear.targets)
        ]

    def _merge(self, linear: FusedLinear, adapter: Adapter, checkpoint: Checkpoint, owner: str) -> Weight:
        slices = read_slices(linear, checkpoint, torch.float32)
        for weight, (target, first, width) in zip(slices, linear.parts, strict=True):
            if (update := adapter.targets.get(target)) is not None:
                weight += update.scale * (update.b[first : first + width].float() @ update.a.float())
        loaded = self._loaded[linear.name]
        whole = torch.cat(slices)
        if not bool(whole.to(loaded.dtype).isfinite().all()):
            reject(owner, f"its sum with {linear.name!r} overflows {loaded.dtype}; train it again")
        return loaded.lay_out(whole)


def _num_bytes(weight: Weight) -> int:
    plain, packed = weight
    # A stand-in has no memory of its own; oneDNN's layouts hold as many values as the plain weight.
    kept = packed if packed is not None else plain
    whole = 0 if packed is None or not plain.is_contiguous() else plain.numel() * plain.element_size()
    return kept.numel() * kept.element_size() + whole
