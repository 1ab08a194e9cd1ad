"""Softmax attention over packed sequences: softmax(scale · Q Kᵀ + mask) V, each sequence for itself.

Shape key: T tokens of all sequences, n sequences, Hq query heads, Hkv key and value heads, D head size, m prefixes,
P tokens of all prefixes.

q [T, Hq, D], k and v [T, Hkv, D] float32, float16 or bfloat16 -> [T, Hq, D] of that dtype, contiguous. The last
dimension of q, k and v is contiguous, the others may be strided: they are usually views of one fused projection. Hq is
a multiple of Hkv; query head h reads key head h // (Hq / Hkv). D is a multiple of 8 from 16 to 256.

offsets [n + 1] int32, from 0 to T, never falling: sequence s holds the rows offsets[s] .. offsets[s + 1] - 1. An empty
sequence is allowed.

Shared prefixes are four arguments, given together or not at all: prefix_k and prefix_v [P, Hkv, D] of q's dtype,
prefix_offsets [m + 1] int32 from 0 to P, never falling, and prefix_of [n] int32, the prefix of each sequence, -1 for
none. A sequence with a prefix of L tokens is the tail of a longer one: its tokens stand at the positions L, L + 1, ...
and see the prefix's keys and values at the positions 0 .. L - 1. Without a prefix positions count from 0.

num_keys [n] int32 says how many of a sequence's own first tokens are keys, at least one; those behind them only ask,
as a ColBERT query's mask tokens do. None: all of them. With a window each of those behind must still reach a key: there
are at most ``window`` of them.

asked [n] int64 names one row of q of each sequence whose result is wanted, as the last layer of a model that pools one
token does; the other rows of the result are undefined. That of an empty sequence is not read. None: all are wanted.

Position i sees position j of its sequence if j <= i (causal) and |i - j| <= window (window >= 0; -1: no limit). scale
is above 0 and below 1e6, usually D ** -0.5.

Scores, softmax and sums are float32; 16-bit weights may be rounded to q's dtype before they meet V. Memory beside the
result is bounded by D and Hq / Hkv, not by the length: keys are read in blocks with an online softmax (Milakov and
Gimelshein 2018, FlashAttention). A NaN or infinity stays in its own sequence.

A row's bits depend on its own sequence and prefix only, not on what it is packed with and not on the number of threads.

On CUDA the values of offsets, prefix_offsets, prefix_of and asked are not checked: that would wait for the device.
offsets[n] may there be less than T, as in a batch padded to a fixed size: the rows behind it stay undefined.

``reference.py`` is the definition, ``csrc/attention*.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.attention import reference
from embedmux.kernels.library import define

SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor offsets, bool causal, int window, float scale, Tensor? prefix_k=None, "
    "Tensor? prefix_v=None, Tensor? prefix_offsets=None, Tensor? prefix_of=None, Tensor? num_keys=None, "
    "Tensor? asked=None) -> Tensor"
)


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    window: int,
    scale: float,
    prefix: tuple[torch.Tensor | None, ...],
    num_keys: torch.Tensor | None = None,
    asked: torch.Tensor | None = None,
) -> None:
    """Refuses what can be told from shapes, dtypes and plain numbers; ``prefix`` is the four arguments of prefixes."""
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
    if offsets.dim() != 1 or offsets.size(0) == 0:
        checks.shape_error("offsets", offsets, "[n + 1]")
    if window < -1:
        checks.value_error("window", window, "-1 (none) or a half-window of at least 0")
    if not 0 < scale < 1e6:
        checks.value_error("scale", scale, "above 0 and below 1e6")
    if prefix != (None, None, None, None):
        _check_prefix(k, offsets.size(0) - 1, *prefix)
    for name, given, dtype in (("num_keys", num_keys, torch.int32), ("asked", asked, torch.int64)):
        if given is None:
            continue
        if given.dtype != dtype:
            checks.dtype_error(name, given, str(dtype))
        if given.dim() != 1 or given.size(0) != offsets.size(0) - 1:
            checks.shape_error(name, given, f"[n] with n = {offsets.size(0) - 1} sequences")


def _check_prefix(
    k: torch.Tensor,
    sequences: int,
    prefix_k: torch.Tensor | None,
    prefix_v: torch.Tensor | None,
    prefix_offsets: torch.Tensor | None,
    prefix_of: torch.Tensor | None,
) -> None:
    if prefix_k is None or prefix_v is None or prefix_offsets is None or prefix_of is None:
        raise ValueError("prefix_k, prefix_v, prefix_offsets and prefix_of must be given together or not at all")
    for name, tensor in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        if tensor.dtype != k.dtype:
            checks.dtype_error(name, tensor, f"{k.dtype} as q")
        if tensor.dim() != 3 or tensor.size(0) != prefix_k.size(0) or tensor.shape[1:] != k.shape[1:]:
            checks.shape_error(
                name, tensor, f"[P, Hkv, D] with Hkv = {k.size(1)}, D = {k.size(2)}, the same P for both"
            )
    for name, tensor in (("prefix_offsets", prefix_offsets), ("prefix_of", prefix_of)):
        if tensor.dtype != torch.int32:
            checks.dtype_error(name, tensor, "torch.int32")
    if prefix_offsets.dim() != 1 or prefix_offsets.size(0) == 0:
        checks.shape_error("prefix_offsets", prefix_offsets, "[m + 1]")
    if prefix_of.dim() != 1 or prefix_of.size(0) != sequences:
        checks.shape_error("prefix_of", prefix_of, f"[n] with n = {sequences} sequences")


def _check_edges(name: str, offsets: torch.Tensor, rows: int) -> None:
    edges = offsets.tolist()
    if edges[:1] != [0] or edges[-1] != rows or edges != sorted(edges):
        checks.value_error(name, edges, f"rising from 0 to {rows}")


def _checked_keys(num_keys: torch.Tensor | None, offsets: torch.Tensor, window: int) -> list[int]:
    """How many keys each sequence has of its own."""
    lengths: list[int] = (offsets[1:] - offsets[:-1]).tolist()
    if num_keys is None:
        return lengths
    keys: list[int] = num_keys.tolist()
    if not all(min(length, 1) <= count <= length for count, length in zip(keys, lengths, strict=True)):
        checks.value_error("num_keys", keys, f"from 1 to the sequences' tokens {lengths}")
    if window >= 0 and any(length - count > window for count, length in zip(keys, lengths, strict=True)):
        checks.value_error("num_keys", keys, f"at most {window} (window) below the sequences' tokens {lengths}")
    return keys


def _check_asked(asked: torch.Tensor | None, offsets: torch.Tensor) -> None:
    """The reference computes every row, but is as strict as those that do not."""
    if asked is None:
        return
    edges = offsets.tolist()
    for s, row in enumerate(asked.tolist()):
        if edges[s] != edges[s + 1] and not edges[s] <= row < edges[s + 1]:
            checks.value_error("asked", row, f"a row of sequence {s}, {edges[s]} .. {edges[s + 1] - 1}")


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
    prefix_k: torch.Tensor | None = None,
    prefix_v: torch.Tensor | None = None,
    prefix_offsets: torch.Tensor | None = None,
    prefix_of: torch.Tensor | None = None,
    num_keys: torch.Tensor | None = None,
    asked: torch.Tensor | None = None,
) -> torch.Tensor:
    check(q, k, v, offsets, window, scale, (prefix_k, prefix_v, prefix_offsets, prefix_of), num_keys, asked)
    _check_edges("offsets", offsets, q.size(0))
    keys = _checked_keys(num_keys, offsets, window)
    _check_asked(asked, offsets)
    if prefix_k is None or prefix_v is None or prefix_offsets is None or prefix_of is None:
        return reference.attention(q, k, v, offsets, causal, window, scale, keys)
    _check_edges("prefix_offsets", prefix_offsets, prefix_k.size(0))
    if not all(-1 <= prefix < prefix_offsets.size(0) - 1 for prefix in prefix_of.tolist()):
        checks.value_error(
            "prefix_of", prefix_of.tolist(), f"-1 (none) or one of the {prefix_offsets.size(0) - 1} prefixes"
        )
    return reference.attention_with_prefixes(
        q, k, v, offsets, causal, window, scale, prefix_k, prefix_v, prefix_offsets, prefix_of, keys
    )


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
    window: int,
    scale: float,
    prefix_k: torch.Tensor | None = None,
    prefix_v: torch.Tensor | None = None,
    prefix_offsets: torch.Tensor | None = None,
    prefix_of: torch.Tensor | None = None,
    num_keys: torch.Tensor | None = None,
    asked: torch.Tensor | None = None,
) -> torch.Tensor:
    check(q, k, v, offsets, window, scale, (prefix_k, prefix_v, prefix_offsets, prefix_of), num_keys, asked)
    return q.new_empty(q.size())


attention = define("attention", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
