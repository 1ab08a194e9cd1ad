"""What only quantize_rows promises: the codes of sentence-transformers, bit order, and an answer for every float."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.kernels import ops

SIZES = ((1, 1), (63, 100), (100, 384), (7, 63))


def inputs(rows: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal rows and ranges that leave some of their values outside."""
    generator = torch.Generator().manual_seed(11)
    values = torch.randn(rows, dimensions, generator=generator)
    ranges = torch.stack((-torch.rand(dimensions, generator=generator) - 1, torch.full((dimensions,), 1.75)))
    ranges[:, 0] = 0.5
    return values, ranges


@pytest.mark.parametrize(("rows", "dimensions"), SIZES)
@pytest.mark.parametrize("encoding", ("int8", "uint8", "binary", "ubinary"))
def test_codes_are_those_of_sentence_transformers(isa: str, encoding: Any, rows: int, dimensions: int) -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization", exc_type=ImportError)
    values, ranges = inputs(rows, dimensions)
    scalar = encoding in ("int8", "uint8")
    theirs = quantization.quantize_embeddings(values.numpy(), encoding, ranges.numpy() if scalar else None)
    ours = ops.quantize_rows(values, encoding, ranges if scalar else None).numpy()
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.floats(-5, 5, width=32), st.floats(0, 5, width=32))
def test_every_float_has_a_code(values: list[float], start: float, span: float) -> None:
    rows = torch.tensor([values])
    ranges = torch.tensor([[start] * len(values), [start + span] * len(values)])
    codes = ops.quantize_rows(rows, "uint8", ranges)
    assert torch.equal(codes, ops.quantize_rows.reference(rows, "uint8", ranges))
    assert torch.equal(codes.int() - 128, ops.quantize_rows(rows, "int8", ranges).int())
    bits = ops.quantize_rows(rows, "ubinary", None)
    assert torch.equal(bits, torch.from_numpy(np.packbits(rows.numpy() > 0, axis=1)))
    assert torch.equal(bits.int() - 128, ops.quantize_rows(rows, "binary", None).int())


def test_nan_and_infinity_have_the_documented_codes(isa: str) -> None:
    rows = torch.tensor([[torch.nan, -torch.inf, torch.inf, -0.0]])
    ranges = torch.tensor([[-1.0] * 4, [1.0] * 4])
    assert ops.quantize_rows(rows, "uint8", ranges).tolist() == [[0, 0, 255, 127]]
    assert ops.quantize_rows(rows, "int8", ranges).tolist() == [[-128, -128, 127, -1]]
    assert ops.quantize_rows(rows, "ubinary", None).tolist() == [[0b00100000]]
    assert ops.quantize_rows(rows, "binary", None).tolist() == [[0b00100000 - 128]]
    assert ops.quantize_rows(rows, "float16", None)[0].isnan().tolist() == [True, False, False, False]


def test_first_dimension_stands_in_the_highest_bit(isa: str) -> None:
    rows = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 1.0, 0, 1.0]])
    assert ops.quantize_rows(rows, "ubinary", None).tolist() == [[0b10000001, 0b01000000]]


def test_floats_are_rounded_as_torch_rounds_and_never_shared() -> None:
    rows, _ = inputs(63, 100)
    for encoding in ("float32", "float16", "bfloat16"):
        out = ops.quantize_rows(rows.t().contiguous().t(), encoding, None)
        assert out.is_contiguous()
        assert torch.equal(out, rows.to(getattr(torch, encoding)))
    assert ops.quantize_rows(rows, "float32", None).data_ptr() != rows.data_ptr()


@pytest.mark.parametrize(
    ("encoding", "ranges", "message"),
    [
        ("int8", None, "ranges must be given for int8: calibrate first"),
        ("uint8", None, "ranges must be given for uint8: calibrate first"),
        ("uint8", torch.zeros(2, 7), "ranges must"),
        ("uint8", torch.zeros(2, 8, dtype=torch.float64), "ranges must be"),
        ("int4", None, "encoding must be"),
    ],
)
def test_arguments_outside_the_contract_are_refused(encoding: str, ranges: torch.Tensor | None, message: str) -> None:
    for call in (ops.quantize_rows, ops.quantize_rows.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(torch.zeros(3, 8), encoding, ranges)
