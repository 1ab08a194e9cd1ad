"""What the launchers refuse, since on CUDA nothing stands between a caller and them; and strided small arguments."""

import importlib
from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.library import Op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(*arguments: Any) -> list[Any]:
    return [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments]


def apart(vector: torch.Tensor) -> torch.Tensor:
    """The same values, two elements apart."""
    return torch.stack([vector, torch.ones_like(vector)], -1)[..., 0]


QUERIES, ROWS, OFFSETS = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 3], dtype=torch.int32)
CODES, TABLES = torch.zeros(5, 4, dtype=torch.uint8), torch.randn(3, 8, 16)
REFUSED = {
    "similarity": (ops.similarity, (QUERIES, ROWS[:, :7], "dot"), "rows must be"),
    "similarity_kind": (ops.similarity, (QUERIES, ROWS, "cosine"), "kind must be one of"),
    "similarity_topk": (ops.similarity_topk, (QUERIES, ROWS, "dot", 6), "k must be at most the 5 rows"),
    "similarity_topk_no_rows": (ops.similarity_topk, (QUERIES, ROWS[:0], "dot", 1), "k must be at most the 0 rows"),
    "rescore": (ops.rescore, (QUERIES, ROWS, torch.zeros(2, 1, dtype=torch.int64), "dot"), "candidates must be"),
    "pq_topk": (ops.pq_topk, (TABLES, CODES, 6, None), "k must be in 1..5"),
    "pq_topk_tables": (ops.pq_topk, (TABLES[:, :6], CODES, 1, None), "tables must be"),
    "quantize_pq": (ops.quantize_pq, (ROWS, torch.randn(6, 16, 2)), "codebooks must be"),
    "maxsim": (ops.maxsim, (QUERIES, OFFSETS, ROWS[:, :7], OFFSETS), "documents must be"),
    "maxsim_offsets": (ops.maxsim, (QUERIES, OFFSETS.long(), ROWS, OFFSETS), "query_offsets must be torch.int32"),
}


@pytest.mark.parametrize(("op", "arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_launcher_refuses_what_the_contract_refuses(op: Op, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        op.triton(*on_device(*arguments))


@pytest.mark.parametrize("op", [op for op in ops.ALL if op.has_triton], ids=lambda op: op.name)
def test_small_arguments_may_be_strided(op: Op) -> None:
    """Vectors are either refused by name or read as they are; never as if they were contiguous."""
    cases = importlib.import_module(f"{op.reference.__module__}.cases")
    case = getattr(cases, "TRITON_CASES", cases.CASES)[0]
    arguments = on_device(*cases.make_inputs(case, seed=6))
    expected = op.triton(*arguments)
    strided = [apart(value) if isinstance(value, torch.Tensor) and value.dim() == 1 else value for value in arguments]
    try:
        found = op.triton(*strided)
    except ValueError as refusal:
        assert "contiguous" in str(refusal)
        return
    for mine, other in zip(*(it if isinstance(it, tuple) else (it,) for it in (found, expected)), strict=True):
        assert torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
