"""What only attention promises: sequences do not touch, masks cut, memory stays bounded, odd arguments are refused."""

import re
from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.attention import cases

COMPILED = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")
LENGTHS = (63, 1, 300, 100, 17, 256)


def arguments(dtype: torch.dtype, lengths: tuple[int, ...], **fields: Any) -> cases.Arguments:
    case = cases.Case("test", dtype, lengths, **{"heads": 4, "key_heads": 2, "depth": 32, **fields})
    return cases.make_inputs(case, seed=7)


def offsets_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@COMPILED
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("causal", "window"), ((False, -1), (True, -1), (False, 40)))
def test_sequence_has_the_same_bits_alone_and_in_any_packing(
    isa: str, dtype: torch.dtype, causal: bool, window: int
) -> None:
    q, k, v, offsets, *_, scale = arguments(dtype, LENGTHS)
    packed = torch.split_with_sizes(ops.attention(q, k, v, offsets, causal, window, scale), LENGTHS)
    pieces = [[torch.split_with_sizes(x, LENGTHS)[s] for x in (q, k, v)] for s in range(len(LENGTHS))]
    for (alone_q, alone_k, alone_v), expected in zip(pieces, packed, strict=True):
        alone = ops.attention(alone_q, alone_k, alone_v, offsets_of((len(alone_q),)), causal, window, scale)
        assert torch.equal(alone, expected)
    order = [4, 2, 0, 5, 1, 3]
    joined = [torch.cat([pieces[s][part] for s in order]) for part in range(3)]
    lengths = tuple(LENGTHS[s] for s in order)
    turned = torch.split_with_sizes(ops.attention(*joined, offsets_of(lengths), causal, window, scale), lengths)
    assert all(torch.equal(turned[place], packed[s]) for place, s in enumerate(order))


PREFIXES = (17, 300, 0)
PREFIX_OF = (0, 1, 1, -1, 2, 0)  # of LENGTHS


@COMPILED
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("causal", "window"), ((False, -1), (True, -1), (False, 40)))
def test_sequence_with_a_prefix_has_the_bits_of_the_whole_sequence(
    isa: str, dtype: torch.dtype, causal: bool, window: int
) -> None:
    found = arguments(dtype, LENGTHS, causal=causal, window=window, prefixes=PREFIXES, prefix_of=PREFIX_OF)
    q, k, v, *_, scale, prefix_k, prefix_v, prefix_offsets, _ = found
    packed = torch.split_with_sizes(ops.attention(*found), LENGTHS)
    plain = torch.split_with_sizes(ops.attention(*found[:7]), LENGTHS)
    edges = [*prefix_offsets.tolist(), 0, 0]
    parts = zip(*(torch.split_with_sizes(x, LENGTHS) for x in (q, k, v)), strict=True)
    for s, (own_q, own_k, own_v) in enumerate(parts):
        shared = slice(edges[PREFIX_OF[s]], edges[PREFIX_OF[s] + 1])
        keys, values = torch.cat([prefix_k[shared], own_k]), torch.cat([prefix_v[shared], own_v])
        queries = torch.cat([torch.randn(len(keys) - len(own_q), *q.shape[1:]).to(dtype), own_q])
        whole = ops.attention(queries, keys, values, offsets_of((len(keys),)), causal, window, scale)
        assert torch.equal(packed[s], whole[len(keys) - len(own_q) :])
        if PREFIX_OF[s] == -1:
            assert torch.equal(packed[s], plain[s])


@COMPILED
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("causal", "window"), ((False, -1), (True, -1), (False, 40)))
@pytest.mark.parametrize("prefixed", (False, True))
def test_a_row_that_is_asked_for_alone_has_the_bits_it_has_among_all(
    isa: str, dtype: torch.dtype, causal: bool, window: int, prefixed: bool
) -> None:
    lengths = (*LENGTHS, 0)
    shared = {"prefixes": PREFIXES, "prefix_of": (*PREFIX_OF, 1)} if prefixed else {}
    found = arguments(dtype, lengths, causal=causal, window=window, **shared)
    whole = ops.attention(*found)
    prefix = found[7:] or (None,) * 4
    ends = found[3].long()
    for rows in (ends[:-1], ends[1:] - 1, ends[:-1] + (torch.rand(len(lengths)) * ends.diff()).long()):
        alone = ops.attention(*found[:7], *prefix, None, rows)
        assert torch.equal(alone[rows[:-1]], whole[rows[:-1]])


@COMPILED
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_tokens_that_are_no_keys_change_nobody_and_read_the_others(isa: str, dtype: torch.dtype) -> None:
    count = (9, 300, 40)
    q, k, v, *rest = arguments(dtype, (33, 310, 40), fused=False)
    none = (None, None, None, None)
    found = ops.attention(q, k, v, *rest, *none, torch.tensor(count, dtype=torch.int32))
    edges = rest[0].tolist()
    for s, keys in enumerate(count):
        rows, seen = slice(edges[s], edges[s + 1]), slice(edges[s], edges[s] + keys)
        alone = ops.attention(q[seen], k[seen], v[seen], offsets_of((keys,)), *rest[1:])
        assert torch.equal(found[seen], alone)
        k[edges[s] + keys : edges[s + 1]] = torch.nan
        v[edges[s] + keys : edges[s + 1]] = torch.nan
        assert torch.equal(
            ops.attention(q, k, v, *rest, *none, torch.tensor(count, dtype=torch.int32))[rows], found[rows]
        )


@COMPILED
def test_nan_and_infinity_stay_in_their_sequence(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, *rest = arguments(dtype, (33, 20, 40), fused=False)
        clean = ops.attention(q, k, v, *rest)
        k[40], v[41] = torch.nan, torch.inf
        dirty = ops.attention(q, k, v, *rest)
        assert torch.equal(dirty[:33], clean[:33])
        assert torch.equal(dirty[53:], clean[53:])
        assert dirty[33:53].isnan().all()


def test_row_of_padding_tiles_never_reads_beyond_the_tensors(isa: str) -> None:
    whole = torch.full((40, 3 * 2 * 32), torch.nan)
    whole[10:29] = torch.randn(19, 192)
    q, k, v = (part.view(19, 2, 32) for part in whole[10:29].chunk(3, 1))
    assert ops.attention(q, k, v, offsets_of((19,)), False, -1, 0.2).isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_large_scores_do_not_overflow(isa: str, dtype: torch.dtype) -> None:
    q, k, v, offsets, causal, window, scale = arguments(dtype, (70, 300))
    out = ops.attention(q * 64, k * 64, v, offsets, causal, window, scale)
    expected = ops.attention.reference((q * 64).double(), (k * 64).double(), v.double(), offsets, causal, window, scale)
    # Scores reach thousands: float32 holds them to a few 1e-4, and that error goes into the exponent.
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_first_token_of_a_causal_sequence_copies_its_value(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, offsets, *_ = arguments(dtype, (1, 63, 100))
        first = offsets[:-1].long()
        out = ops.attention(q, k, v, offsets, True, -1, 0.2)
        torch.testing.assert_close(out[first], v[first].repeat_interleave(2, 1))


def test_window_that_covers_the_sequence_is_no_window(isa: str) -> None:
    q, k, v, offsets, *_ = arguments(torch.float32, (63, 300))
    free = ops.attention(q, k, v, offsets, False, -1, 0.2)
    for window in (300, 2**31, 2**62):
        assert torch.equal(ops.attention(q, k, v, offsets, False, window, 0.2), free)


def test_long_sequence_agrees_with_torch() -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3)):
        q, k, v, offsets, *_ = arguments(dtype, (8192,), heads=1, key_heads=1)
        wide_q, wide_k, wide_v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=0.2)
        expected = attended[0].transpose(0, 1)
        out = ops.attention(q, k, v, offsets, False, -1, 0.2)
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)


GOOD = arguments(torch.float32, (3, 5), fused=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": GOOD[0].double()}, "must be"),
        ({"q": GOOD[0].half()}, "must be"),
        ({"q": GOOD[0][..., :12]}, "multiple of 8 from 16 to 256"),
        ({"q": GOOD[0][0]}, "q must"),
        ({"q": GOOD[0][:, :3]}, "multiple of the 2 heads of k and v"),
        ({"k": GOOD[1].bfloat16()}, "k must be"),
        ({"k": GOOD[1][:, :1]}, "v must"),
        ({"v": GOOD[2][:7]}, "v must"),
        ({"offsets": GOOD[3].long()}, "offsets must be"),
        ({"offsets": GOOD[3][:2]}, "offsets must"),
        ({"offsets": torch.tensor([0, 9, 8], dtype=torch.int32)}, "offsets must"),
        ({"window": -2}, "window must be -1 (none) or a half-window of at least 0, got -2"),
        ({"scale": 0.0}, "scale must be above 0 and below 1e6, got 0"),
        ({"scale": float("nan")}, "scale must be above 0 and below 1e6, got nan"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    names = ("q", "k", "v", "offsets", "causal", "window", "scale")
    values = {**dict(zip(names, GOOD, strict=True)), **changes}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(message)):
        ops.attention(*values.values())
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        ops.attention.reference(*values.values())


WITH_PREFIX = arguments(torch.float32, (3, 5), prefixes=(4, 2), prefix_of=(1, -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_k": None}, "must be given together or not at all"),
        ({"prefix_of": None}, "must be given together or not at all"),
        ({"prefix_k": WITH_PREFIX[7].half()}, "prefix_k must be"),
        ({"prefix_k": WITH_PREFIX[7][:, :1]}, "prefix_k must"),
        ({"prefix_v": WITH_PREFIX[8][:5]}, "prefix_v must"),
        ({"prefix_v": WITH_PREFIX[8][..., :16]}, "prefix_v must"),
        ({"prefix_offsets": WITH_PREFIX[9].long()}, "prefix_offsets must be"),
        ({"prefix_offsets": torch.tensor([0, 7, 6], dtype=torch.int32)}, "prefix_offsets must"),
        ({"prefix_of": WITH_PREFIX[10].long()}, "prefix_of must be"),
        ({"prefix_of": WITH_PREFIX[10][:1]}, "prefix_of must"),
        ({"prefix_of": torch.tensor([2, 0], dtype=torch.int32)}, "-1 (none) or one of the 2 prefixes, got"),
        ({"prefix_of": torch.tensor([0, -2], dtype=torch.int32)}, "-1 (none) or one of the 2 prefixes, got"),
        ({"num_keys": torch.tensor([3, 5])}, "num_keys must be"),
        ({"num_keys": torch.tensor([3], dtype=torch.int32)}, "num_keys must"),
        ({"num_keys": torch.tensor([3, 6], dtype=torch.int32)}, "num_keys must be from 1 to"),
        ({"num_keys": torch.tensor([0, 5], dtype=torch.int32)}, "num_keys must be from 1 to"),
        ({"asked": torch.tensor([0, 3], dtype=torch.int32)}, "asked must be"),
        ({"asked": torch.tensor([0])}, "asked must"),
        ({"asked": torch.tensor([3, 4])}, "asked must be a row of sequence 0, 0 .. 2, got 3"),
        ({"asked": torch.tensor([0, 2])}, "asked must be a row of sequence 1, 3 .. 7, got 2"),
        ({"asked": torch.tensor([-1, 4])}, "asked must be a row of sequence 0, 0 .. 2, got -1"),
    ],
)
def test_optional_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    names = ("prefix_k", "prefix_v", "prefix_offsets", "prefix_of")
    values = {**dict(zip(names, WITH_PREFIX[7:], strict=True)), **changes}
    for kernel in (ops.attention, ops.attention.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(message)):
            kernel(*WITH_PREFIX[:7], **values)


def test_a_token_that_would_reach_no_key_within_its_window_is_refused() -> None:
    q, k, v, offsets, *_ = arguments(torch.float32, (32, 5))
    for keys, window in (((9, 5), 22), ((31, 1), 3)):
        for kernel in (ops.attention, ops.attention.reference):
            with pytest.raises((ValueError, RuntimeError), match=rf"num_keys must be at most {window}"):
                kernel(q, k, v, offsets, False, window, 0.2, num_keys=torch.tensor(keys, dtype=torch.int32))
            reach = kernel(q, k, v, offsets, False, window + 1, 0.2, num_keys=torch.tensor(keys, dtype=torch.int32))
            assert bool(reach.isfinite().all())
