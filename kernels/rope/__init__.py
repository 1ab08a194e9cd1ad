"""Rotary positions for queries and keys, with the RMSNorm per head that some models put before them, in one pass.

Shape key: T tokens, Hq query heads, Hkv key heads, D head size, R rotated dimensions (even, at most D), P positions.

q [T, Hq, D] and k [T, Hkv, D] float32, bfloat16 or float16 -> (q' [T, Hq, D], k' [T, Hkv, D]), same dtype, contiguous.
The last dimension of q and k is contiguous, the others may be strided: they are usually views of one fused projection.
positions [T] int64 says which row of cos [P, R / 2] and sin [P, R / 2], both float32, turns a token: pair j of token t
by the angle whose cosine is cos[positions[t], j]. Factors on the angles or their cosines (YaRN, NTK) are the caller's.

Pairs are half a rotation apart, as in transformers' ``rotate_half``: for j < R / 2, with x a head's values,
x'[j] = x[j] · cos[j] - x[j + R / 2] · sin[j] and x'[j + R / 2] = x[j + R / 2] · cos[j] + x[j] · sin[j]. Dimensions from
R on are not turned (Su et al. 2021; the layout and the partial rotation of GPT-NeoX).

q_weight [D] and k_weight [D], float32 or of q's dtype, or None: the head is first divided by √(mean(x²) + eps) over all
of D and multiplied by the weight (Qwen3's q_norm and k_norm). eps, at least 0, is read only then.

Everything is computed in float32 and rounded once, so norm and rotation have no rounding between them. A row's bits
depend on that row and its position alone. A position outside 0 .. P - 1 is refused on the CPU; on CUDA, where reading
it would stop the device, it is the caller's word: nothing outside cos and sin is read, the row's result is undefined.

``reference.py`` is the definition, ``csrc/rope.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.rope import reference

SCHEMA = (
    "(Tensor q, Tensor k, Tensor positions, Tensor cos, Tensor sin, Tensor? q_weight, Tensor? k_weight, float eps) "
    "-> (Tensor, Tensor)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # float64 is the tests' oracle


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> None:
    """What can be told from shapes, dtypes and plain numbers."""
    if q.dtype not in DTYPES:
        checks.dtype_error("q", q, "torch.float32, torch.bfloat16 or torch.float16")
    if q.dim() != 3 or q.size(1) == 0:
        checks.shape_error("q", q, "[T, Hq, D] with Hq at least 1")
    if k.dtype != q.dtype:
        checks.dtype_error("k", k, f"{q.dtype} as q")
    if k.dim() != 3 or k.size(0) != q.size(0) or k.size(1) == 0 or k.size(2) != q.size(2):
        checks.shape_error("k", k, f"[T, Hkv, D] with T = {q.size(0)}, Hkv at least 1, D = {q.size(2)}")
    if positions.dtype != torch.int64:
        checks.dtype_error("positions", positions, "torch.int64")
    if positions.shape != q.shape[:1]:
        checks.shape_error("positions", positions, f"[T] with T = {q.size(0)}")
    for name, tensor in (("cos", cos), ("sin", sin)):
        if tensor.dtype not in (torch.float32, torch.float64):
            checks.dtype_error(name, tensor, "torch.float32")
        if tensor.dim() != 2 or tensor.size(0) == 0 or not 2 <= 2 * tensor.size(1) <= q.size(2):
            checks.shape_error(name, tensor, f"[P, R / 2] with P at least 1 and R from 2 to D = {q.size(2)}")
        if tensor.shape != cos.shape:
            checks.shape_error(name, tensor, f"{list(cos.shape)} as cos")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and weight.dtype not in (torch.float32, q.dtype):
            checks.dtype_error(name, weight, f"torch.float32 or {q.dtype} as q")
        if weight is not None and weight.shape != q.shape[2:]:
            checks.shape_error(name, weight, f"[D] with D = {q.size(2)}")
    if not eps >= 0:
        checks.value_error("eps", eps, "at least 0")


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(q, k, positions, cos, sin, q_weight, k_weight, eps)
    if not bool(((positions >= 0) & (positions < cos.size(0))).all()):
        checks.value_error("positions", positions.tolist(), f"from 0 to {cos.size(0) - 1}, the last row of cos")
    return reference.rope(q, k, positions, cos, sin, q_weight, k_weight, eps)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(q, k, positions, cos, sin, q_weight, k_weight, eps)
    return q.new_empty(q.size()), k.new_empty(k.size())


rope = define("rope", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
