"""Packed token states -> the bytes of each text's vector in one pass; only the codes are written.

Shape key: T tokens, H hidden size, n sequences, m of them to encode, D dimensions.

hidden [T, H] float32, bfloat16 or float16, residual [T, H] of the same dtype or None, offsets [n + 1] int32 from 0 to
T, rising: sequence s holds the rows offsets[s] .. offsets[s + 1] - 1, at least one. sequences [m] int32 names those to
encode, in this order (None: all), since the texts of one batch differ in dimensions, encodings and calibrations.
-> (codes [m, width] in the dtype of the encoding, finite [m] bool).

In this order, in float32, nothing rounded before the end:

1. hidden + residual, then the model's final norm over the whole row: "none", "layer" (LayerNorm, biased variance) or
   "rms" (RMSNorm: x / sqrt(mean(x²) + eps)). norm_weight [H] (None: 1) and, for "layer", norm_bias [H] (None: 0) are
   float32 or of hidden's dtype.
2. pooling "mean", "cls" (the first row) or "last", cut to D = dimensions, 1 <= D <= H, and if ``normalize`` the
   division by the Euclidean norm, as in ``pool_normalize``.
3. encoding and ranges [2, D] float32 as in ``quantize_rows``, whose codes these are; binary ones have width
   ceil(D / 8), all others D.

finite tells whether every value of the vector was finite before it was encoded: int8 codes cannot show a NaN.

With norm "none" and no residual the compiled kernel gives the bits of quantize_rows(pool_normalize(hidden, ...)). The
bits of a row depend on its own sequence only.

On CUDA, where reading values would stop the device, those of offsets and sequences are the caller's word; the last
offset may be less than T, and an empty sequence gives a zero vector.

``reference.py`` is the definition, ``csrc/pool_encode.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.pool_encode import reference
from embedmux.kernels.pool_normalize import check as check_pooling
from embedmux.kernels.pool_normalize import check_rising
from embedmux.kernels.quantize_rows import DTYPES, codes_width
from embedmux.kernels.quantize_rows import check as check_encoding

NORMS = ("none", "layer", "rms")
SCHEMA = (
    "(Tensor hidden, Tensor? residual, Tensor? norm_weight, Tensor? norm_bias, float eps, str norm, Tensor offsets, "
    "Tensor? sequences, str pooling, int dimensions, bool normalize, str encoding, Tensor? ranges) -> (Tensor, Tensor)"
)
Pair = tuple[torch.Tensor, torch.Tensor]


def check(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, encoding: str, ranges: torch.Tensor | None,
) -> None:  # fmt: skip
    """What can be told from shapes and dtypes alone."""
    check_pooling(hidden, offsets, pooling, dimensions)
    check_encoding(dimensions, torch.promote_types(hidden.dtype, torch.float32), encoding, ranges)
    if residual is not None and residual.dtype != hidden.dtype:
        checks.dtype_error("residual", residual, f"{hidden.dtype} as hidden")
    if residual is not None and residual.shape != hidden.shape:
        checks.shape_error("residual", residual, f"{list(hidden.shape)} as hidden")
    if norm not in NORMS:
        checks.value_error("norm", norm, "none, layer or rms")
    if not eps >= 0:
        checks.value_error("eps", eps, "at least 0")
    for name, vector, users in (("norm_weight", norm_weight, ("layer", "rms")), ("norm_bias", norm_bias, ("layer",))):
        if vector is None:
            continue
        if norm not in users:
            raise ValueError(f"{name} must be None with norm {norm}")
        if vector.dtype not in (torch.float32, hidden.dtype):
            checks.dtype_error(name, vector, f"torch.float32 or {hidden.dtype} as hidden")
        if vector.shape != hidden.shape[1:]:
            checks.shape_error(name, vector, f"[H] with H = {hidden.size(1)}")
    if sequences is not None and sequences.dtype != torch.int32:
        checks.dtype_error("sequences", sequences, "torch.int32")
    if sequences is not None and sequences.dim() != 1:
        checks.shape_error("sequences", sequences, "[m]")


def empty_codes(
    hidden: torch.Tensor, offsets: torch.Tensor, sequences: torch.Tensor | None, dimensions: int, encoding: str
) -> Pair:
    """Fresh memory for the result of checked arguments."""
    count = offsets.size(0) - 1 if sequences is None else sequences.size(0)
    codes = hidden.new_empty(count, codes_width(dimensions, encoding), dtype=DTYPES[encoding])
    return codes, hidden.new_empty(count, dtype=torch.bool)


def _reference(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, normalize: bool, encoding: str, ranges: torch.Tensor | None,
) -> Pair:  # fmt: skip
    check(
        hidden, residual, norm_weight, norm_bias, eps, norm, offsets, sequences, pooling, dimensions, encoding, ranges
    )
    check_rising(offsets, hidden.size(0))
    last = offsets.size(0) - 2
    if sequences is not None and any(not 0 <= index <= last for index in sequences.tolist()):
        checks.value_error("sequences", sequences.tolist(), f"from 0 to {last}")
    return reference.pool_encode(
        hidden, residual, norm_weight, norm_bias, eps, norm, offsets, sequences, pooling, dimensions, normalize,
        encoding, ranges,
    )  # fmt: skip


def _fake(
    hidden: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None, eps: float, norm: str, offsets: torch.Tensor, sequences: torch.Tensor | None,
    pooling: str, dimensions: int, normalize: bool, encoding: str, ranges: torch.Tensor | None,
) -> Pair:  # fmt: skip
    check(
        hidden, residual, norm_weight, norm_bias, eps, norm, offsets, sequences, pooling, dimensions, encoding, ranges
    )
    return empty_codes(hidden, offsets, sequences, dimensions, encoding)


pool_encode = define("pool_encode", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
