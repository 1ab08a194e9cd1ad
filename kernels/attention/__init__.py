"""Softmax attention over packed sequences: softmax(scale · Q Kᵀ + mask) V, each sequence for itself.

Shape key: T tokens of all sequences, n sequences, Hq query heads, Hkv key and value heads, D head size.

q [T, Hq, D], k and v [T, Hkv, D] float32 or bfloat16 -> [T, Hq, D] of that dtype, contiguous. The last dimension of
q, k and v is contiguous, the others may be strided: they are usually views of one fused projection. Hq is a multiple of
Hkv; query head h reads key head h // (Hq / Hkv). D is a multiple of 8 from 16 to 256.

offsets [n + 1] int32, from 0 to T, never falling: sequence s holds the rows offsets[s] .. offsets[s + 1] - 1. An empty
sequence is allowed.

Token i of a sequence sees token j of the same sequence if j <= i (causal) and |i - j| <= window (window >= 0; -1: no
limit). scale is above 0 and below 1e6, usually D ** -0.5.

Scores, softmax and sums are float32; with bfloat16 the weights are rounded to bfloat16 before they meet V. Memory
beside the result is bounded by D and Hq / Hkv, not by the length: keys are read in blocks of 256 with an online
softmax (Milakov and Gimelshein 2018, FlashAttention). A NaN or infinity stays in its own sequence.

A row's bits depend on its own sequence only, not on what it is packed with and not on the number of threads.

``reference.py`` is the definition, ``csrc/attention*.cpp`` the CPU kernel; a Triton kernel belongs in ``cuda.py``.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.attention import reference
from embedmux.kernels.library import define

SCHEMA = "(Tensor q, Tensor k, Tensor v, Tensor offsets, bool causal, int window, float scale) -> Tensor"


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, window: int, scale: float) -> None:
    """What can be told from shapes, dtypes and plain numbers."""
    if q.dim() != 3 or q.size(2) % 8 != 0 or not 16 <= q.size(2) <= 256:
        checks.shape_error("q", q, "[T, Hq, D] with D a multiple of 8 from 16 to 256")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            checks.dtype_error(name, tensor, f"{q.dtype} as q")
        if tensor.dim() != 3 or tensor.size(0) != q.size(0) or tensor.size(2) != q.size(2):
            checks.shape_error(name, tensor, f"[T, Hkv, D] with T = {q.size(0)}, D = {q.size(2)}")
    if v.size(1) != k.size(1):
        checks.shape_error("v", v, f"[T, Hkv, D] with Hkv = {k.size(1)} as k")
    if k.size(1) == 0 or q.size(1) % k.size(1) != 0:
        checks.shape_error("q", q, f"[T, Hq, D] with Hq a multiple of the {k.size(1)} heads of k and v")
    if offsets.dtype != torch.int32:
        checks.dtype_error("offsets", offsets, "torch.int32")
    if offsets.dim() != 1:
        checks.shape_error("offsets", offsets, "[n + 1]")
    if window < -1:
        checks.value_error("window", window, "-1 (none) or a half-window of at least 0")
    if not 0 < scale < 1e6:
        checks.value_error("scale", scale, "above 0 and below 1e6")


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> torch.Tensor:
    _check(q, k, v, offsets, window, scale)
    ends = offsets.tolist()
    if ends[:1] != [0] or ends[-1] != q.size(0) or ends != sorted(ends):
        checks.value_error("offsets", ends, f"rising from 0 to {q.size(0)}")
    return reference.attention(q, k, v, offsets, causal, window, scale)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> torch.Tensor:
    _check(q, k, v, offsets, window, scale)
    return q.new_empty(q.size())


attention = define("attention", SCHEMA, reference=_reference, fake=_fake)
