"""Layers of a post-norm encoder on packed sequences, all in one call.

    context = attention(x Wqkvᵀ + b)        states = LayerNorm(context Woᵀ + b + x)
    y = LayerNorm(activation(states Wuᵀ + b) Wdᵀ + b + states)

each product with its segments' low-rank updates; y is the next layer's x. Shape key: T rows (tokens), H hidden, I
inner, L layers, n sequences, S slots, G segments.

x [T, H] float32, bfloat16 or float16; offsets [n + 1] int32 cut the T rows into sequences, which attend to themselves
alone, from both sides, in num_heads heads, scores times scale. Of each layer, one after another, weights are [3 H, H],
[H, H], [I, H] and [H, I], biases theirs, norms weight and bias of the two LayerNorms [H], all of x's dtype. arena,
segment_offsets and segment_slots are as for lora_matmul; adapters holds a table [S, J, 3] for each weight, J = 3 for
the first and 1 for the others. activation is "gelu", "gelu_tanh", "silu" or "relu". packed holds pack_weight (or
pack_weight_int8) of each weight, or nothing.

weights, and packed with it, may hold several sets of four for each layer, such as those that adapters were merged into:
segment_sets [G] int32 gives each segment its set, 0 where it is None. A sequence lies in segments of one set.

-> y [T, H] of the last layer, with the same bits as the ops one by one: what stands between them is rounded as they
round it. So this only saves time: on the CPU with AMX a thread takes whole sequences through the layers while they are
in its cache. Where no kernel is of its own (other processors, CUDA), the ops are called.

``reference.py`` is the definition, ``csrc/post_norm_layers.cpp`` the CPU kernel.
"""

from typing import Any

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.post_norm_layers import reference

SCHEMA = (
    "(Tensor x, Tensor offsets, int num_heads, float scale, float eps, str activation, Tensor[] weights, "
    "Tensor[] biases, Tensor[] norms, Tensor arena, Tensor[] adapters, Tensor segment_offsets, Tensor segment_slots, "
    "Tensor[] packed, Tensor? segment_sets=None) -> Tensor"
)
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


def check(*arguments: Any) -> None:
    """What is not checked by the ops themselves; arguments as in the schema."""
    x, _, num_heads, _, _, activation, weights, biases, norms, _, adapters, _, _, packed, *_ = arguments
    if x.dim() != 2:
        checks.shape_error("x", x, "[T, H]")
    if not biases or len(biases) % 4:
        checks.value_error("biases", f"{len(biases)} tensors", "4 a layer")
    for name, tensors in (("norms", norms), ("adapters", adapters)):
        if len(tensors) != len(biases):
            checks.value_error(name, f"{len(tensors)} tensors", f"{len(biases)} as biases")
    if not weights or len(weights) % len(biases):
        checks.value_error("weights", f"{len(weights)} tensors", f"{len(biases)} as biases, or a multiple")
    if len(packed) not in (0, len(weights)):
        checks.value_error("packed", f"{len(packed)} tensors", f"{len(weights)} as weights, or none")
    if num_heads <= 0 or x.size(1) % num_heads:
        checks.value_error("num_heads", num_heads, f"a divisor of H = {x.size(1)}")
    if activation not in ACTIVATIONS:
        checks.value_error("activation", activation, f"one of {', '.join(ACTIVATIONS)}")


def _reference(*arguments: Any) -> torch.Tensor:
    check(*arguments)
    return reference.post_norm_layers(*arguments)


def _fake(*arguments: Any) -> torch.Tensor:
    check(*arguments)
    return torch.empty_like(arguments[0])


post_norm_layers = define("post_norm_layers", SCHEMA, reference=_reference, fake=_fake, is_composed=True)
