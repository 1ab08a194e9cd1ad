"""The fused layers give the bits of the ops one by one, and a sequence's bits do not depend on its batch."""

import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from embedmux.kernels import ops
from embedmux.kernels.post_norm_layers import cases, post_norm_layers, reference

pytestmark = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the extension is not built")
CASE = next(case for case in cases.CASES if case.name == "minilm_bfloat16")


def with_packed(arguments: Any) -> Any:
    """The arguments as a server gives them: weights in the machine's layout, plain ones without memory."""
    weights = arguments[6]
    stand_ins = [torch.zeros((), dtype=weight.dtype).expand(weight.shape) for weight in weights]
    return (*arguments[:6], stand_ins, *arguments[7:13], [ops.pack_weight(weight) for weight in weights])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_whole_layers_have_the_bits_of_their_ops(case: cases.Case, isa: str) -> None:
    arguments = with_packed(cases.make_inputs(case, seed=random.randrange(1 << 30)))
    assert same_bits(post_norm_layers(*arguments), reference.post_norm_layers(*arguments))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(num_threads: int, isa: str, threads: None) -> None:
    torch.set_num_threads(num_threads)
    chosen = random.Random(num_threads)
    lengths = [chosen.choice((1, 7, 16, 31, 33, 64, 112, 257)) for _ in range(24)]
    case = replace(CASE, sequences=tuple((length, index // 5 - 1) for index, length in enumerate(lengths)))
    whole = with_packed(cases.make_inputs(case, seed=7))
    expected = post_norm_layers(*whole)
    offsets = whole[1].tolist()
    for first, last in ((0, 1), (3, 4), (11, 12), (22, 24), (5, 15), (2, 24)):
        rows = slice(offsets[first], offsets[last])
        part = replace(case, sequences=case.sequences[first:last])
        own = cases.make_inputs(part, seed=0)  # for the offsets and segments alone
        found = post_norm_layers(whole[0][rows].clone(), own[1], *whole[2:11], own[11], own[12], whole[13])
        assert same_bits(found, expected[rows]), f"sequences {first} to {last}"


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("packer", [ops.pack_weight, ops.pack_weight_int8])
def test_several_sets_of_weights_in_one_call(packer: Any, num_layers: int, isa: str) -> None:
    case = replace(CASE, num_layers=num_layers)
    first, second = (list(cases.make_inputs(case, seed=seed)) for seed in (10, 11))
    sequences = len(case.sequences)
    alone = []
    for weights in (first[6], second[6]):
        arguments = [*first[:6], weights, *first[7:13], [packer(weight) for weight in weights]]
        alone.append(post_norm_layers(*arguments))
    layers = (slice(4 * layer, 4 * layer + 4) for layer in range(num_layers))
    weights = [weight for layer in layers for weight in (*first[6][layer], *second[6][layer])]
    packed = [packer(weight) for weight in weights]
    segments = first[12].numel()
    sets = torch.tensor([index % 2 for index in range(segments)], dtype=torch.int32)
    arguments = [*first[:6], weights, *first[7:13], packed, sets]
    found = post_norm_layers(*arguments)
    assert same_bits(found, reference.post_norm_layers(*arguments))
    ends = first[11].tolist()
    for segment in range(segments):
        rows = slice(ends[segment], ends[segment + 1])
        assert same_bits(found[rows], alone[segment % 2][rows])
    assert sequences > segments > 2
    with pytest.raises(RuntimeError, match=r"segment_sets must be in 0..1, got 2 at 1"):
        post_norm_layers(*arguments[:14], sets + 1)


def test_callers_on_several_threads_at_once_get_the_same_bits() -> None:
    arguments = with_packed(cases.make_inputs(CASE, seed=8))
    expected = post_norm_layers(*arguments)
    wrong: list[int] = []

    def call() -> None:
        wrong.extend(turn for turn in range(20) if not same_bits(post_norm_layers(*arguments), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, 7, "num_heads must divide the 384 columns of x, got 7"),
        (5, "swiglu", "activation must be gelu, gelu_tanh, silu or relu"),
        (8, [], "adapters and norms must have 4 tensors as biases, got 4 and 0"),
        (13, [torch.zeros(1)], "packed must have 4 tensors as weights, or none, got 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    arguments = list(cases.make_inputs(CASE, seed=9))
    arguments[place] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        post_norm_layers(*arguments)
