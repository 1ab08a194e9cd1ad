"""Adapters merged into copies of the weights they change: a text pays nothing for its adapter, memory pays for it.

The sum W + scale B A is taken in float32 from the checkpoint's own values and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from embedmux.server.adapters.arena import StagedAdapter
from embedmux.server.adapters.files import reject
from embedmux.server.backbones.layers import LoraLinear, Weight, read_slices
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Adapter

Staged = dict[str, Weight]  # by the linear's name


class MergedWeights:
    """Makes and places the weights of merged adapters. ``open_checkpoint``: the base weights are not kept plain."""

    def __init__(
        self,
        linears: Sequence[FusedLinear],
        loaded: Mapping[str, LoraLinear],
        open_checkpoint: Callable[[], Checkpoint],
    ) -> None:
        self._linears = linears
        self._loaded = loaded
        self._open_checkpoint = open_checkpoint
        self.slots: set[int] = set()

    def stage(self, adapter: Adapter) -> tuple[StagedAdapter, Staged]:
        """The adapter as the arena counts it, and its weights; those it does not change stay the base model's.

        Touches no shared state. Raises AdapterRejected for what cannot be merged.
        """
        owner = f"adapter {adapter.id!r}"
        known = {target for linear in self._linears for target in linear.targets}
        if unknown := sorted(adapter.targets.keys() - known):
            reject(owner, f"module {unknown[0]!r} is not a linear of this backbone")
        touched = [linear for linear in self._linears if not adapter.targets.keys().isdisjoint(linear.targets)]
        if lookups := [linear.name for linear in touched if linear.is_lookup]:
            reject(owner, f"changes {lookups[0]!r}, which is looked up and not multiplied; load it as low-rank")
        checkpoint = self._open_checkpoint()
        weights = {linear.name: self._merge(linear, adapter, checkpoint, owner) for linear in touched}
        num_bytes = sum(_num_bytes(weight) for weight in weights.values())
        rows = {linear.name: [(0, 0, 0)] * len(linear.slices) for linear in self._linears}
        return StagedAdapter(adapter.id, torch.empty(0), rows, num_bytes), weights

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
