"""Rows of a table by their numbers, as for token embeddings.

Shape key: V rows of the table, H values each, n rows taken.

table [V, H] float32, bfloat16 or float16, rows [n] int64 in 0 .. V - 1 -> [n, H] of that dtype, contiguous. It differs
from ``torch.nn.functional.embedding`` in who does it on the CPU: the kernels' own threads. torch's, which no other
kernel of a bfloat16 forward pass uses, would have to be woken for it, which takes longer than the rows.

``reference.py`` is the definition, ``csrc/take_rows.cpp`` the CPU kernel; on CUDA torch's own gather answers.
"""

import torch

from embedmux.kernels import checks
from embedmux.kernels.library import define
from embedmux.kernels.take_rows import reference

SCHEMA = "(Tensor table, Tensor rows) -> Tensor"


def check(table: torch.Tensor, rows: torch.Tensor) -> None:
    """What can be told from shapes and dtypes alone."""
    if table.dim() != 2:
        checks.shape_error("table", table, "[V, H]")
    if rows.dim() != 1:
        checks.shape_error("rows", rows, "[n]")
    if rows.dtype != torch.int64:
        checks.dtype_error("rows", rows, "torch.int64")


def _reference(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    check(table, rows)
    return reference.take_rows(table, rows)


def _fake(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    check(table, rows)
    return table.new_empty(rows.size(0), table.size(1))


take_rows = define("take_rows", SCHEMA, reference=_reference, fake=_fake, is_composed=True)
