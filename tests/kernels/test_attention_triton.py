"""What only attention's Triton kernel promises: the same bits in any batch, and batches padded to a fixed size."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.attention import cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU in Triton's interpreter
LENGTHS = (20, 70, 0, 5)
PREFIXES = {"prefixes": (9, 40), "prefix_of": (1, 0, 0, -1)}


def arguments(**fields: Any) -> cases.Arguments:
    fields = {"dtype": torch.float32, "lengths": LENGTHS, "heads": 2, "key_heads": 1, "depth": 24, **fields}
    case = cases.Case("test", **fields)
    return cases.make_inputs(case, seed=7)


def attend(*arguments: Any) -> torch.Tensor:
    moved = (value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments)
    found: torch.Tensor = ops.attention.triton(*moved)
    return found.cpu()


def padded(offsets: torch.Tensor, to: int) -> torch.Tensor:
    """More sequences, all empty."""
    return torch.cat([offsets, offsets[-1:].expand(to)])


@pytest.mark.parametrize("fields", ({}, {"causal": True, "window": 30}, PREFIXES), ids=("plain", "window", "prefix"))
def test_sequence_has_the_same_bits_alone_and_in_a_batch(fields: dict[str, Any]) -> None:
    q, k, v, offsets, causal, window, scale, *prefix = arguments(**fields)
    packed = attend(q, k, v, offsets, causal, window, scale, *prefix)
    edges = offsets.tolist()
    for s in (1, 3):
        rows = slice(edges[s], edges[s + 1])
        own = [*prefix[:3], prefix[3][s : s + 1]] if prefix else []
        ends = torch.tensor([0, LENGTHS[s]], dtype=torch.int32)
        alone = attend(q[rows], k[rows], v[rows], ends, causal, window, scale, *own)
        assert torch.equal(alone, packed[rows])


@pytest.mark.parametrize("length", (1, 9, 15, 16, 31, 40, 69))
@pytest.mark.parametrize(("causal", "window", "heads"), ((True, -1, 2), (False, -1, 2), (True, 30, 1)))
def test_sequence_has_the_same_bits_wherever_it_is_cut_into_prefix_and_tail(
    length: int, causal: bool, window: int, heads: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, *_, scale = arguments(causal=causal, window=window, heads=heads, lengths=(70,), dtype=dtype)
        ends = torch.tensor([0, 70], dtype=torch.int32)
        whole = attend(q, k, v, ends, causal, window, scale)
        shared, tail = slice(0, length), slice(length, 70)
        edges = torch.tensor([0, length], dtype=torch.int32)
        found = attend(
            q[tail], k[tail], v[tail], torch.tensor([0, 70 - length], dtype=torch.int32), causal, window, scale,
            k[shared], v[shared], edges, torch.zeros(1, dtype=torch.int32),
        )  # fmt: skip
        assert torch.equal(found, whole[tail])


@pytest.mark.parametrize("fields", ({"heads": 6}, {"causal": True, "window": 30}, PREFIXES))
def test_a_row_that_is_asked_for_alone_has_the_bits_it_has_among_all(fields: dict[str, Any]) -> None:
    found = arguments(**fields)
    whole, ends = attend(*found), found[3].long()
    prefix = found[7:] or (None,) * 4
    for rows in (ends[:-1], ends[1:] - 1, ends[:-1] + (torch.rand(len(LENGTHS)) * ends.diff()).long()):
        alone = attend(*found[:7], *prefix, None, rows)
        wanted = rows[ends.diff() > 0]
        assert torch.equal(alone[wanted], whole[wanted])


def test_padding_of_rows_and_sequences_changes_nothing() -> None:
    q, k, v, offsets, causal, window, scale, *prefix = arguments(**PREFIXES)
    expected = attend(q, k, v, offsets, causal, window, scale, *prefix)
    wider = [torch.cat([x, torch.full((33, *x.shape[1:]), torch.nan)]) for x in (q, k, v)]
    prefix[3] = torch.cat([prefix[3], torch.tensor([1, -1, 0], dtype=torch.int32)])
    found = attend(*wider, padded(offsets, 3), causal, window, scale, *prefix)
    assert torch.equal(found[: len(q)], expected)


def test_empty_batches_launch_nothing() -> None:
    q = torch.zeros(0, 2, 32)
    assert attend(q, q, q, torch.zeros(4, dtype=torch.int32), False, -1, 0.2).shape == q.shape
    assert attend(q, q, q, torch.zeros(1, dtype=torch.int32), False, -1, 0.2).shape == q.shape


def test_nan_stays_in_its_sequence() -> None:
    q, k, v, offsets, causal, window, scale = arguments()
    clean = attend(q, k, v, offsets, causal, window, scale)
    k, v = k.clone(), v.clone()
    k[30], v[31] = torch.nan, torch.inf
    dirty = attend(q, k, v, offsets, causal, window, scale)
    assert torch.equal(dirty[:20], clean[:20])
    assert torch.equal(dirty[90:], clean[90:])


def test_strided_last_dimension_is_refused() -> None:
    q, k, v, *rest = arguments(key_heads=2)
    with pytest.raises(ValueError, match="k must be contiguous in its last dimension"):
        ops.attention.triton(q, k.mT.contiguous().mT, v, *rest)
    with pytest.raises(TypeError, match="q must be float32, float16 or bfloat16"):
        ops.attention.triton(q.double(), k.double(), v.double(), *rest)
