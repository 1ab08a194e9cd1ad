"""One linear layer for a batch that mixes adapters: activation(s ⊙ (x Wᵀ + B(A x)) + bias), chosen per segment.

Shape key: T rows (tokens), K in, N out, R rank, S slots, J slices, G segments.

x [T, K] float32, bfloat16 or float16, weight [N, K] and bias [N] of the same dtype -> y [T, N] of that dtype
([T, N / 2] from a gated activation). Sums are kept in float32 and rounded once, at the end; only AMX, at ranks above
16, rounds A x to bfloat16 between its two factors.

arena [E], same dtype, holds the factors of all adapters. adapters [S, J, 3] int64 names, for slot s and slice j,
(offset of A, offset of B, rank) in elements: A is [rank, K] and B is [rank, n_j], both row-major, B transposed against
PEFT's and already scaled by alpha / r. Ranks are exact and differ freely; rank 0 leaves the slice to the base weight.
slices [n_0 .. n_J-1] are the widths of the fused parts (query, key, value: J = 3) and sum to N.

segment_offsets [G + 1] int32 cut the T rows into segments, segment_slots [G] int32 give each its slot. Slot -1 is the
base model: its rows have the same bits as in a call without adapters. adapters, segment_offsets and segment_slots
live on x's device. On CUDA, where reading them would stop the device, their values are the caller's word; and rows
behind the last offset belong to no segment: what y holds there is undefined (a captured graph has such rows).

What an adapter may replace, besides adding B(A x): overrides [S, J, 3] int64 names (offset of W in arena, of s in
columns, of b in columns), each -1 for "as the base model has it"; None stands for -1 everywhere. W is a merged weight
[n_j, K] in place of the slice's rows of weight; s [n_j] multiplies the columns before the bias (DoRA's m / ‖W + BA‖,
Liu et al. 2024, which PEFT applies in this order); b [n_j] replaces the slice of bias. columns [C] float32 holds them,
since a rounded scale would show in every value. A slot with W usually has rank 0. On CUDA, A, B and W
begin at multiples of 16 bytes in arena, since whole vectors are read there.

activation is "none", "gelu" (the exact one, by erf), "gelu_tanh", "silu" or "relu"; or gated, over two slices of equal
width, gate before up: "swiglu" (silu(gate) · up), "geglu" and "geglu_tanh".

packed is ``pack_weight(weight)``: the layout the machine at hand multiplies fastest, valid on that machine only. It
changes the speed and never the bits: without it the compiled kernel packs on every call. The weight's values must not
change afterwards. 16-bit weights stay 16 bits wide in every layout. Beside packed the CPU kernel reads weight's values
only where packed cannot serve (on AMX, halves of a gated activation whose width is no multiple of 32; everywhere, the
unmerged slices of a slot with merged ones), and refuses there a weight that is not contiguous: an expanded scalar of
the weight's shape may stand in for it and saves its memory.

packed may also be ``pack_weight_int8(weight)``, on the CPU: W as int8 codes with a scale for each output channel. The
op then takes each row of x as uint8 codes with a scale and a zero point of that row alone, never of the batch; x Wᵀ is
the product of codes in int32, times both scales. The low-rank part is not quantised. This changes values, by about half
a percent of their spread, more where a row's largest value stands far out.

Batch invariance: the bits of a row of y depend on that row of x and on its adapter alone, not on T, the row's place,
its neighbours, their adapters or the number of threads. The compiled kernels keep this law; the reference, which
leaves the sums to torch, does not promise it.

``reference.py`` is the definition, ``csrc/lora_matmul.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.lora_matmul import reference

GATED = ("swiglu", "geglu", "geglu_tanh")
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "silu", "relu", *GATED)
SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor arena, Tensor adapters, Tensor segment_offsets, "
    "Tensor segment_slots, int[] slices, str activation, Tensor? packed, Tensor? overrides=None, "
    "Tensor? columns=None) -> Tensor"
)


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arena: torch.Tensor,
    adapters: torch.Tensor,
    segment_offsets: torch.Tensor,
    segment_slots: torch.Tensor,
    slices: list[int],
    activation: str,
    overrides: torch.Tensor | None,
    columns: torch.Tensor | None,
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
    for name, tensor in (("adapters", adapters), ("overrides", overrides)):
        if tensor is not None and tensor.dtype != torch.int64:
            checks.dtype_error(name, tensor, "torch.int64")
    for name, tensor in (("segment_offsets", segment_offsets), ("segment_slots", segment_slots)):
        if tensor.dtype != torch.int32:
            checks.dtype_error(name, tensor, "torch.int32")
    if segment_slots.dim() != 1 or segment_offsets.dim() != 1 or segment_offsets.size(0) != segment_slots.size(0) + 1:
        checks.shape_error(
            "segment_offsets", segment_offsets, f"[G + 1] with segment_slots {list(segment_slots.shape)}"
        )
    if min(slices, default=0) <= 0 or sum(slices) != weight.size(0):
        checks.value_error("slices", list(slices), f"positive widths that sum to N = {weight.size(0)}")
    if activation not in ACTIVATIONS:
        checks.value_error("activation", activation, f"one of {', '.join(ACTIVATIONS)}")
    if activation in GATED and (len(slices) != 2 or slices[0] != slices[1]):
        checks.value_error("slices", list(slices), f"[N / 2, N / 2], gate and up, for {activation}")
    if overrides is not None:
        if overrides.shape != adapters.shape:
            checks.shape_error("overrides", overrides, f"{list(adapters.shape)} as adapters")
        wide = torch.promote_types(x.dtype, torch.float32)  # float64 beside x in float64, the reference's own
        if columns is None or columns.dim() != 1 or columns.dtype != wide:
            raise ValueError("columns must be [C] float32 where overrides are given")


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
    overrides: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    check(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns
    )  # fmt: skip
    offsets = segment_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != x.size(0) or offsets != sorted(offsets):
        checks.value_error("segment_offsets", offsets, f"rising from 0 to {x.size(0)}")
    if any(not -1 <= slot < adapters.size(0) for slot in segment_slots.tolist()):
        checks.value_error("segment_slots", segment_slots.tolist(), f"in -1..{adapters.size(0) - 1}")
    return reference.lora_matmul(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, packed, overrides, columns
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
    overrides: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    check(
        x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, activation, overrides, columns
    )  # fmt: skip
    return x.new_empty(x.size(0), weight.size(0) // (2 if activation in GATED else 1))


def _fake_pack_weight_int8(weight: torch.Tensor) -> torch.Tensor:
    return weight.new_empty(-(-weight.size(0) // 32), -(-weight.size(1) // 64) * 2048 + 256, dtype=torch.int8)


def _fake_pack_weight(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


lora_matmul = define("lora_matmul", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
pack_weight = define(
    "pack_weight", "(Tensor weight) -> Tensor", reference=reference.pack_weight, fake=_fake_pack_weight
)
pack_weight_int8 = define(
    "pack_weight_int8",
    "(Tensor weight) -> Tensor",
    reference=reference.pack_weight_int8,
    fake=_fake_pack_weight_int8,
)
