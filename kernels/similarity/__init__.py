"""Scores of every query with every row, by brute force. The greater score is the nearer one, in every kind.

Shape key: Q queries, n rows (both may be 0), D dimensions, B bytes of packed bits; D and B from 1 to 65536.

queries, rows -> [Q, n] float32, contiguous, by kind:

- "dot": queries [Q, D] and rows [n, D] of one dtype, float32, bfloat16 or float16: the sum of products, multiplied and
  added in float32.
- "int8": int8 [Q, D] and int8 [n, D]: query_scale[q] · (the exact integer dot) + query_offset[q]; None stands for
  scales of 1, offsets of 0. ``descale.py`` makes queries, scales and offsets for codes of calibrated ranges.
- "hamming": uint8 [Q, B] and uint8 [n, B] of packed bits: minus the number of bits that differ. (The int8 codes of
  quantize_rows' "binary" give the same scores when both sides are viewed as uint8: their flipped bits cancel.)
- "float_binary": float32 [Q, D] and uint8 [n, ceil(D / 8)], the first dimension in the highest bit, as quantize_rows
  writes "ubinary": the sum of q_d · (+1 where the bit is set, -1 where not). Bits behind D do not count.
- "float_int8": float32 [Q, D] and int8 [n, D]: the sum of q_d · row_d, plus query_offset[q] if given. Steps of
  calibrated codes are folded into the query beforehand (``descale.py``).

query_scale (only "int8") and query_offset (only "int8" and "float_int8") are [Q] float32.

A score's bits depend on its query, its row and D alone: not on other queries or rows, on where they stand, nor on the
number of threads; similarity_topk and rescore give the same bits on the same device. "int8" and "hamming" are the same
on every instruction set. A NaN score stays NaN here (similarity_topk and rescore give -inf for it). Any strides are
accepted, but rows whose last dimension is not contiguous are copied.

``reference.py`` is the definition, ``csrc/similarity.cpp`` the CPU kernel; the Triton kernel stands in ``cuda.py``.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.similarity import reference

KINDS = ("dot", "int8", "hamming", "float_binary", "float_int8")
# The definition also computes in float64; compiled kernels refuse it.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDE = (torch.float32, torch.float64)
MAX_WIDTH = 65536
SCHEMA = "(Tensor queries, Tensor rows, str kind, Tensor? query_scale=None, Tensor? query_offset=None) -> Tensor"


def check_vectors(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None,
    query_offset: torch.Tensor | None,
) -> None:
    """Refuses, by name, what similarity, similarity_topk and rescore all refuse."""
    if kind not in KINDS:
        checks.value_error("kind", kind, f"one of {', '.join(KINDS)}")
    _check_dtypes(queries, rows, kind)
    if queries.dim() != 2 or not 1 <= queries.size(1) <= MAX_WIDTH:
        checks.shape_error("queries", queries, f"[Q, D] with D from 1 to {MAX_WIDTH}")
    width = (queries.size(1) + 7) // 8 if kind == "float_binary" else queries.size(1)
    if rows.dim() != 2 or rows.size(1) != width:
        checks.shape_error("rows", rows, f"[n, {width}] for queries {list(queries.shape)} of kind {kind}")
    for name, vector, kinds in (
        ("query_scale", query_scale, ("int8",)),
        ("query_offset", query_offset, ("int8", "float_int8")),
    ):
        if vector is None:
            continue
        if kind not in kinds:
            raise ValueError(f"{name} must be None for kind {kind}: only {' and '.join(kinds)} takes one")
        if vector.dtype not in WIDE:
            checks.dtype_error(name, vector, "torch.float32")
        if vector.shape != queries.shape[:1]:
            checks.shape_error(name, vector, f"[Q] with Q = {queries.size(0)}")


def _check_dtypes(queries: torch.Tensor, rows: torch.Tensor, kind: str) -> None:
    if kind == "dot":
        if queries.dtype not in FLOATS:
            checks.dtype_error("queries", queries, "torch.float32, torch.bfloat16 or torch.float16")
        if rows.dtype != queries.dtype:
            checks.dtype_error("rows", rows, f"{queries.dtype} as queries")
        return
    wanted = {"int8": torch.int8, "hamming": torch.uint8, "float_binary": torch.uint8, "float_int8": torch.int8}[kind]
    if rows.dtype != wanted:
        checks.dtype_error("rows", rows, f"{wanted} for kind {kind}")
    if kind in ("int8", "hamming"):
        if queries.dtype != wanted:
            checks.dtype_error("queries", queries, f"{wanted} for kind {kind}")
    elif queries.dtype not in WIDE:
        checks.dtype_error("queries", queries, f"torch.float32 for kind {kind}")


def _reference(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    check_vectors(queries, rows, kind, query_scale, query_offset)
    return reference.similarity(queries, rows, kind, query_scale, query_offset)


def _fake(
    queries: torch.Tensor,
    rows: torch.Tensor,
    kind: str,
    query_scale: torch.Tensor | None = None,
    query_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    check_vectors(queries, rows, kind, query_scale, query_offset)
    return queries.new_empty(queries.size(0), rows.size(0), dtype=torch.float32)


similarity = define("similarity", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
