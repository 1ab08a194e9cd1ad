"""One linear layer for a batch that mixes adapters: activation(x Wᵀ + bias + B(A x)), A and B chosen per segment.

Shape key: T rows (tokens), K in, N out, R rank, S slots, J slices, G segments.

x [T, K] float32 or bfloat16, weight [N, K] and bias [N] of the same dtype -> y [T, N] of that dtype. Sums are kept in
float32 and rounded once, at the end.

arena [E], same dtype, holds the factors of all adapters. adapters [S, J, 3] int64 names, for slot s and slice j,
(offset of A, offset of B, rank) in elements: A is [rank, K] and B is [rank, n_j], both row-major, B transposed against
PEFT's and already scaled by alpha / r. Ranks are exact and differ freely; rank 0 leaves the slice to the base weight.
slices [n_0 .. n_J-1] are the widths of the fused parts (query, key, value: J = 3) and sum to N.

segment_offsets [G + 1] int32 cut the T rows into segments, segment_slots [G] int32 give each its slot. Slot -1 is the
base model: its rows have the same bits as in a call without adapters. adapters, segment_offsets and segment_slots
live on x's device.

activation is "none" or "gelu" (the exact one, by erf).

packed is ``pack_weight(weight)``: the layout the machine at hand multiplies fastest, valid on that machine only. It
changes the speed and never the bits: without it the compiled kernel packs on every call. The weight's values must not
change afterwards.

Batch invariance: the bits of a row of y depend on that row of x and on its adapter alone, not on T, the row's place,
its neighbours, their adapters or the number of threads. The compiled kernels keep this law; the reference, which
leaves the sums to torch, does not promise it.

``reference.py`` is the definition, ``csrc/lora_matmul.cpp`` the CPU kernel; a Triton kernel belongs in ``cuda.py``.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.lora_matmul import reference

ACTIVATIONS = ("none", "gelu")
SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor arena, Tensor adapters, Tensor segment_offsets, "
    "Tensor segment_slots, int[] slices, str activation, Tensor? packed) -> Tensor"
)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
) -> None:
    """What can be told from shapes and dtypes alone."""
    if x.dim() != 2:
        checks.shape_error("x", x, "[T, K]")
    if weight.dim() != 2 or weight.size(1) != x.size(1):
        checks.shape_error("weight", weight, f"[N, K] with K = {x.size(1)}")
    for name, tensor in (("weight", weight), ("bias", bias), ("arena", arena)):
        if tensor is not None and tensor.dtype != x.dtype:
            checks.dtype_error(name, tensor, f"{x.dtype} as x")
    if bias is not None and bias.shape != weight.shape[:1]:
        checks.shape_error("bias", bias, f"[N] with N = {weight.size(0)}")
    if adapters.dim() != 3 or adapters.size(1) != len(slices) or adapters.size(2) != 3:
        checks.shape_error("adapters", adapters, f"[S, J, 3] with J = {len(slices)}")
    if segment_slots.dim() != 1 or segment_offsets.dim() != 1 or segment_offsets.size(0) != segment_slots.size(0) + 1:
        checks.shape_error(
            "segment_offsets", segment_offsets, f"[G + 1] with segment_slots {list(segment_slots.shape)}"
        )
    if min(slices, default=0) <= 0 or sum(slices) != weight.size(0):
        checks.value_error("slices", list(slices), f"positive widths that sum to N = {weight.size(0)}")
    if activation not in ACTIVATIONS:
        checks.value_error("activation", activation, f"one of {', '.join(ACTIVATIONS)}")


def _reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
    packed: torch.Tensor | None,
) -> torch.Tensor:
    _check(x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation)
    offsets = segment_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != x.size(0) or offsets != sorted(offsets):
        checks.value_error("segment_offsets", offsets, f"rising from 0 to {x.size(0)}")
    if any(not -1 <= slot < adapters.size(0) for slot in segment_slots.tolist()):
        checks.value_error("segment_slots", segment_slots.tolist(), f"in -1..{adapters.size(0) - 1}")
    return reference.lora_matmul(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, packed
    )


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
    packed: torch.Tensor | None,
) -> torch.Tensor:
    _check(x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation)
    return x.new_empty(x.size(0), weight.size(0))


def _fake_pack_weight(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


lora_matmul = define("lora_matmul", SCHEMA, reference=_reference, fake=_fake)
pack_weight = define(
    "pack_weight", "(Tensor weight) -> Tensor", reference=reference.pack_weight, fake=_fake_pack_weight
)
