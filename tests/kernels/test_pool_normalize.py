"""What only pool_normalize promises: a sequence stands alone, zero stays zero, empty sequences are refused."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops

LENGTHS = (63, 1, 100, 7)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0).int()


def states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), 100, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("pooling", ("mean", "cls", "last"))
def test_sequence_has_the_same_bits_alone_and_in_any_packing(isa: str, dtype: torch.dtype, pooling: str) -> None:
    hidden = states(dtype)
    packed = ops.pool_normalize(hidden, OFFSETS, pooling, 63, True)
    for index, rows in enumerate(torch.split_with_sizes(hidden, LENGTHS)):
        offsets = torch.tensor([0, len(rows)], dtype=torch.int32)
        assert torch.equal(ops.pool_normalize(rows, offsets, pooling, 63, True)[0], packed[index])


@pytest.mark.parametrize("pooling", ("mean", "cls", "last"))
def test_zero_vector_stays_zero_and_others_get_length_one(isa: str, pooling: str) -> None:
    hidden = states()
    hidden[:63] = 0
    out = ops.pool_normalize(hidden, OFFSETS, pooling, 100, True)
    assert torch.equal(out[0], torch.zeros(100))
    torch.testing.assert_close(out[1:].norm(dim=1), torch.ones(3))


def test_rows_are_cut_before_they_are_normalised(isa: str) -> None:
    hidden = states()
    cut = ops.pool_normalize(hidden, OFFSETS, "mean", 10, True)
    assert torch.equal(cut, ops.pool_normalize(hidden[:, :10].contiguous(), OFFSETS, "mean", 10, True))
    torch.testing.assert_close(cut.norm(dim=1), torch.ones(4))


def test_first_and_last_row_are_taken_as_they_are(isa: str) -> None:
    hidden = states()
    ends = OFFSETS.long()
    assert torch.equal(ops.pool_normalize(hidden, OFFSETS, "cls", 100, False), hidden[ends[:-1]])
    assert torch.equal(ops.pool_normalize(hidden, OFFSETS, "last", 100, False), hidden[ends[1:] - 1])


def test_states_may_be_strided(isa: str) -> None:
    hidden = states()
    expected = ops.pool_normalize(hidden[:, ::2].contiguous(), OFFSETS, "mean", 50, True)
    assert torch.equal(ops.pool_normalize(hidden[:, ::2], OFFSETS, "mean", 50, True), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": states()[0]}, "hidden must"),
        ({"offsets": OFFSETS.long()}, "offsets must be"),
        ({"offsets": OFFSETS[:-1].clone()}, "offsets must"),
        ({"offsets": torch.tensor([0, 63, 63, 171], dtype=torch.int32)}, "every sequence"),
        ({"pooling": "max"}, "pooling must be mean, cls or last, got 'max'"),
        ({"dimensions": 0}, "dimensions must be from 1 to the hidden size 100, got 0"),
        ({"dimensions": 101}, "dimensions must be from 1 to the hidden size 100, got 101"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    values = {"hidden": states(), "offsets": OFFSETS, "pooling": "mean", "dimensions": 9, "normalize": True, **changes}
    for call in (ops.pool_normalize, ops.pool_normalize.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())
