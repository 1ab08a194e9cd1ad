"""What only pool_encode promises: the bits of the two ops it joins, final norms, flags, and a sequence stands alone."""

from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.pool_encode.cases import DTYPES, ENCODINGS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (33, 1, 60, 7)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0).int()
WIDTH = 150
NORMS = {"none": (False, False), "layer": (True, True), "rms": (True, False)}
needs_extension = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the references leave their sums to torch")


def states(dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arguments(**changes: Any) -> dict[str, Any]:
    values = {
        "hidden": states(), "residual": None, "norm_weight": None, "norm_bias": None, "eps": 1e-6, "norm": "none",
        "offsets": OFFSETS, "sequences": None, "pooling": "mean", "dimensions": 100, "normalize": True,
        "encoding": "float32", "ranges": None,
    }  # fmt: skip
    return {**values, **changes}


def on_triton(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The Triton kernel's answer, by the GPU if there is one, else in Triton's interpreter."""
    moved = [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in values]
    codes, finite = ops.pool_encode.triton(*moved)
    return codes.cpu(), finite.cpu()


def ranges_of(dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.stack((-0.15 - 0.02 * torch.rand(dimensions, generator=generator), torch.full((dimensions,), 0.12)))


def with_norm(norm: str) -> dict[str, Any]:
    has_weight, has_bias = NORMS[norm]
    generator = torch.Generator().manual_seed(8)
    weight, bias = torch.randn(2, WIDTH, generator=generator)
    return {"norm": norm, "norm_weight": weight if has_weight else None, "norm_bias": bias if has_bias else None}


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ("mean", "cls", "last"))
def test_without_a_norm_the_bits_are_those_of_the_two_ops(isa: str, dtype: torch.dtype, pooling: str) -> None:
    for dimensions in (100, WIDTH):
        vectors = ops.pool_normalize(states(dtype), OFFSETS, pooling, dimensions, True)
        for encoding in ENCODINGS:
            changes = {"pooling": pooling, "dimensions": dimensions, "encoding": encoding}
            codes, finite = ops.pool_encode(**arguments(hidden=states(dtype), ranges=ranges_of(dimensions), **changes))
            expected = ops.quantize_rows(vectors, encoding, ranges_of(dimensions))
            assert codes.dtype == expected.dtype
            assert torch.equal(codes, expected)
            assert finite.tolist() == [True] * len(LENGTHS)


@pytest.mark.parametrize("weights", (True, False))
@pytest.mark.parametrize("pooling", ("mean", "cls", "last"))
@pytest.mark.parametrize("norm", ("layer", "rms"))
def test_final_norms_are_those_of_torch_in_float64(isa: str, norm: str, pooling: str, weights: bool) -> None:
    used = with_norm(norm) if weights else {"norm": norm}
    weight, bias = (None if used.get(name) is None else used[name].double() for name in ("norm_weight", "norm_bias"))
    residual = states(seed=4)
    rows = states().double() + residual.double() + 3
    if norm == "layer":
        normed = torch.nn.functional.layer_norm(rows, (WIDTH,), weight, bias, 1e-6)
    else:
        normed = torch.nn.functional.rms_norm(rows, (WIDTH,), weight, 1e-6)
    split = torch.split_with_sizes(normed, LENGTHS)
    pooled = [part.mean(0) if pooling == "mean" else part[0 if pooling == "cls" else -1] for part in split]
    expected = torch.nn.functional.normalize(torch.stack(pooled)[:, :100])
    codes, _ = ops.pool_encode(**arguments(hidden=states() + 3, residual=residual, pooling=pooling, **used))
    torch.testing.assert_close(codes.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_sequences_choose_rows_of_the_whole_result(isa: str, norm: str) -> None:
    whole, _ = ops.pool_encode(**arguments(**with_norm(norm), encoding="int8", ranges=ranges_of(100)))
    for chosen in ([2, 0], [1], [], [3, 3, 0]):
        sequences = torch.tensor(chosen, dtype=torch.int32)
        codes, finite = ops.pool_encode(
            **arguments(**with_norm(norm), sequences=sequences, encoding="int8", ranges=ranges_of(100))
        )
        assert torch.equal(codes, whole[chosen])
        assert finite.shape == (len(chosen),)


def repacked(hidden: torch.Tensor, residual: torch.Tensor, chosen: list[int], norm: str) -> dict[str, Any]:
    """The arguments for a batch of the chosen sequences alone."""
    rows, added = (
        torch.cat([torch.split_with_sizes(tensor, LENGTHS)[index] for index in chosen]) for tensor in (hidden, residual)
    )
    offsets = torch.tensor([0, *(LENGTHS[index] for index in chosen)]).cumsum(0).int()
    return arguments(hidden=rows, residual=added, offsets=offsets, **with_norm(norm))


@needs_extension
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequence_has_the_same_bits_alone_and_in_any_packing(isa: str, dtype: torch.dtype, norm: str) -> None:
    hidden, residual = states(dtype), states(dtype, seed=4)
    packed, _ = ops.pool_encode(**arguments(hidden=hidden, residual=residual, **with_norm(norm)))
    for chosen in ([0], [1], [2], [3], [2, 0, 3, 1]):
        alone, _ = ops.pool_encode(**repacked(hidden, residual, chosen, norm))
        assert torch.equal(alone, packed[chosen])


@pytest.mark.parametrize("norm", NORMS)
def test_triton_keeps_a_sequences_bits_in_any_packing(norm: str) -> None:
    hidden, residual = states(torch.bfloat16), states(torch.bfloat16, seed=4)
    packed, _ = on_triton(*arguments(hidden=hidden, residual=residual, **with_norm(norm)).values())
    for chosen in ([0], [3], [2, 0, 3, 1]):
        alone, _ = on_triton(*repacked(hidden, residual, chosen, norm).values())
        assert torch.equal(alone, packed[chosen])


def check_flags(function: Any, encoding: str) -> None:
    hidden = states()
    hidden[0, 99] = float("nan")
    hidden[33, 0] = float("-inf")
    hidden[40, 120] = float("nan")  # behind the cut: without a norm it is not part of the vector
    values = arguments(hidden=hidden, encoding=encoding, ranges=ranges_of(100))
    codes, finite = function(*values.values())
    assert finite.tolist() == [False, False, True, True]
    torch.testing.assert_close(codes[2:], ops.pool_encode.reference(*values.values())[0][2:])
    hidden[32, 120] = float("nan")
    values.update(norm="rms", pooling="last")
    assert function(*values.values())[1].tolist() == [False, False, True, True]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_only_vectors_that_are_not_finite_are_flagged(isa: str, encoding: str) -> None:
    check_flags(ops.pool_encode, encoding)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reference_and_triton_flag_the_same_vectors(encoding: str) -> None:
    check_flags(ops.pool_encode.reference, encoding)
    check_flags(on_triton, encoding)


def test_states_may_be_strided(isa: str) -> None:
    wide = torch.randn(sum(LENGTHS), 2 * WIDTH, generator=torch.Generator().manual_seed(1))
    for strided in (wide[:, ::2], wide[:, WIDTH:]):
        expected = ops.pool_encode(**arguments(hidden=strided.contiguous(), residual=strided.contiguous()))
        for function in (ops.pool_encode, on_triton):
            found = function(*arguments(hidden=strided, residual=strided).values())
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_padded_buckets_on_a_gpu_leave_the_real_sequences_alone(norm: str) -> None:
    """Rows behind the last offset are never read, and an empty sequence at the end gives zeros."""
    values = arguments(**with_norm(norm))
    expected, _ = on_triton(*values.values())
    values["hidden"] = torch.cat((states(), torch.full((5, WIDTH), float("nan"))))
    values["offsets"] = torch.cat((OFFSETS, OFFSETS[-1:], OFFSETS[-1:]))
    for pooling in ("mean", "cls", "last"):
        values["pooling"] = pooling
        codes, finite = on_triton(*values.values())
        assert torch.equal(codes[4:], torch.zeros(2, 100))
        assert finite.all()
        if pooling == "mean":
            assert torch.equal(codes[:4], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": states()[0]}, "hidden must"),
        ({"residual": states()[:5]}, "residual must"),
        ({"residual": states(torch.float16)}, "residual must be"),
        ({"norm": "batch"}, "norm must be none, layer or rms, got 'batch'"),
        ({"norm_weight": torch.ones(WIDTH)}, "norm_weight must be None with norm none"),
        ({"norm": "rms", "norm_bias": torch.ones(WIDTH)}, "norm_bias must be None with norm rms"),
        ({"norm": "rms", "norm_weight": torch.ones(9)}, "norm_weight must"),
        ({"norm": "rms", "norm_weight": torch.ones(WIDTH).half()}, "norm_weight must be"),
        ({"norm": "rms", "eps": -1.0}, "eps must be at least 0, got -1"),
        ({"offsets": OFFSETS.long()}, "offsets must be"),
        ({"offsets": OFFSETS[:-1].clone()}, "offsets must"),
        ({"offsets": torch.tensor([0, 33, 33, 101], dtype=torch.int32)}, "every sequence"),
        ({"sequences": torch.tensor([0, 4], dtype=torch.int32)}, "sequences must be from 0 to 3|sequences must be"),
        ({"sequences": torch.tensor([-1], dtype=torch.int32)}, "sequences must be"),
        ({"sequences": torch.tensor([1])}, "sequences must be"),
        ({"sequences": torch.zeros(1, 1, dtype=torch.int32)}, "sequences must"),
        ({"pooling": "max"}, "pooling must be mean, cls or last, got 'max'"),
        ({"dimensions": 151}, "dimensions must be from 1 to the hidden size 150, got 151"),
        ({"encoding": "int4"}, "encoding must be"),
        ({"encoding": "int8"}, "ranges must be given for int8: calibrate first"),
        ({"encoding": "int8", "ranges": ranges_of(99)}, "ranges must"),
        ({"encoding": "uint8", "ranges": ranges_of(100).double()}, "ranges must be"),
    ],
)
def test_arguments_outside_the_contract_are_refused(changes: dict[str, Any], message: str) -> None:
    values = arguments(**changes)
    for call in (ops.pool_encode, ops.pool_encode.reference):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(*values.values())
