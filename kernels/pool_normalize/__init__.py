"""One vector for each packed sequence: pool its rows, keep the first dimensions, bring to length one.

Shape key: T tokens, H hidden size, n sequences.

hidden [T, H] float32, bfloat16 or float16, offsets [n + 1] int32 from 0 to T, rising: sequence s holds the rows
offsets[s] .. offsets[s + 1] - 1, at least one -> [n, dimensions] float32 (float64 from float64, reference only).

pooling is "mean", "cls" (the first row) or "last". 1 <= dimensions <= H. normalize divides by the Euclidean norm of the
values kept; a zero vector stays zero (the divisor is at least 1e-12, as in torch.nn.functional.normalize).

Sums are float32: the mean adds token by token, so a row's bits depend on its own sequence only.

``reference.py`` is the definition, ``csrc/pool_normalize.cpp`` the CPU kernel, ``cuda.py`` the Triton kernel.
On CUDA the values of offsets are not checked; the last may be less than T, and an empty sequence gives a zero vector.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.pool_normalize import reference

POOLINGS = ("mean", "cls", "last")
SCHEMA = "(Tensor hidden, Tensor offsets, str pooling, int dimensions, bool normalize) -> Tensor"


def check(hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, dimensions: int) -> None:
    """What can be told from shapes and dtypes alone."""
    if hidden.dim() != 2:
        checks.shape_error("hidden", hidden, "[T, H]")
    if offsets.dtype != torch.int32:
        checks.dtype_error("offsets", offsets, "torch.int32")
    if offsets.dim() != 1 or offsets.size(0) == 0:
        checks.shape_error("offsets", offsets, "[n + 1]")
    if pooling not in POOLINGS:
        checks.value_error("pooling", pooling, "mean, cls or last")
    if not 1 <= dimensions <= hidden.size(1):
        checks.value_error("dimensions", dimensions, f"from 1 to the hidden size {hidden.size(1)}")


def check_rising(offsets: torch.Tensor, rows: int) -> None:
    """Whether the offsets give each sequence a row and no row is left over; reads their values."""
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != rows or ends != sorted(set(ends)):
        checks.value_error("offsets", ends, f"rising from 0 to {rows}, so that every sequence has a row to pool")


def _reference(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, dimensions: int, normalize: bool
) -> torch.Tensor:
    check(hidden, offsets, pooling, dimensions)
    check_rising(offsets, hidden.size(0))
    return reference.pool_normalize(hidden, offsets, pooling, dimensions, normalize)


def _fake(hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, dimensions: int, normalize: bool) -> torch.Tensor:
    check(hidden, offsets, pooling, dimensions)
    return hidden.new_empty(offsets.size(0) - 1, dimensions, dtype=torch.promote_types(hidden.dtype, torch.float32))


pool_normalize = define("pool_normalize", SCHEMA, reference=_reference, fake=_fake, has_triton=True)
