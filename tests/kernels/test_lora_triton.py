"""What only the Triton kernels of lora_matmul promise: each design's numbers, rows untouched by a batch, padding."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch

from embedmux.kernels.lora_matmul import cuda_shrink, lora_matmul, model, reference
from embedmux.kernels.lora_matmul.cases import MIXED_RANKS, MIXES, TRITON_CASES, Case, make_inputs, tolerance
from embedmux.kernels.lora_matmul.cuda_matmul import multiply
from embedmux.kernels.lora_matmul.cuda_unfused import lora_matmul_unfused

HALF, FULL = torch.bfloat16, torch.float32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU in Triton's interpreter


def recompute(*arguments: Any) -> torch.Tensor:
    return multiply(*arguments[:9], *arguments[10:])


def extend(*arguments: Any) -> torch.Tensor:
    x, _, _, arena, adapters, offsets, slots = arguments[:7]
    return multiply(*arguments[:9], *arguments[10:], cuda_shrink.shrink_rows(x, arena, adapters, offsets, slots))


DESIGNS: dict[str, Callable[..., torch.Tensor]] = {
    "recompute": recompute,
    "extend": extend,
    "unfused": lora_matmul_unfused,
}
FUSED = [pytest.param(DESIGNS[name], id=name) for name in ("recompute", "extend")]


def inputs(case: Case, seed: int) -> tuple[Any, ...]:
    """The case's arguments where the kernels run, in an arena aligned as the server's."""
    arguments = make_inputs(replace(case, alignment=64 // case.dtype.itemsize), seed)
    return tuple(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments)


def expected_of(arguments: Any) -> torch.Tensor:
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    return reference.lora_matmul(*wide)


def assert_numbers(found: torch.Tensor, arguments: Any, case: Case, *, rounded_twice: bool = False) -> None:
    rtol, atol = tolerance(case)
    if rounded_twice and case.dtype != FULL:  # the base product, of size up to 5, is rounded before the rest is added
        atol += 5 * torch.finfo(case.dtype).eps
    assert found.dtype == case.dtype
    torch.testing.assert_close(found.double(), expected_of(arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("mix", "dtype"),
    [("identical", FULL), ("distinct", HALF), ("uniform", FULL), ("zipf", torch.float16), ("skewed", FULL)],
)
@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_gives_the_numbers_of_the_reference(name: str, mix: str, dtype: torch.dtype) -> None:
    case = Case(mix, dtype, 72, (70, 37), MIXED_RANKS, MIXES[mix], merged=(2,), scaled=(0, 2), biased=(4,))
    arguments = inputs(case, seed=7)
    assert_numbers(DESIGNS[name](*arguments), arguments, case, rounded_twice=name == "unfused")


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_gates(name: str) -> None:
    case = next(case for case in TRITON_CASES if case.name == "act_geglu_float32")
    case = replace(case, ranks=MIXED_RANKS, segments=MIXES["distinct"], merged=(1,), biased=(0,))
    arguments = inputs(case, seed=8)
    assert_numbers(DESIGNS[name](*arguments), arguments, case)


@pytest.mark.parametrize("design", FUSED)
@pytest.mark.parametrize(("inner", "width"), [(65, 2049), (2049, 65)])
def test_odd_wide_layer(design: Callable[..., torch.Tensor], inner: int, width: int) -> None:
    case = Case("odd_wide", FULL, inner, (width,), ((40,),), ((2, 0),))
    arguments = inputs(case, seed=9)
    assert_numbers(design(*arguments), arguments, case)


class Layer:
    """A layer of two slices and five adapters, called with any rows and segments."""

    def __init__(self, dtype: torch.dtype, design: Callable[..., torch.Tensor], activation: str = "none") -> None:
        self.case = Case(
            "layer",
            dtype,
            72,
            (70, 70),
            MIXED_RANKS,
            ((60, -1),),
            True,
            activation,
            merged=(3,),
            scaled=(1,),
            biased=(4,),
        )
        self.arguments, self.design = inputs(self.case, seed=10), design
        self.x = self.arguments[0]

    def __call__(self, x: torch.Tensor, segments: list[tuple[int, int]]) -> torch.Tensor:
        offsets = torch.tensor([0, *accumulate(rows for rows, _ in segments)], dtype=torch.int32, device=DEVICE)
        slots = torch.tensor([slot for _, slot in segments], dtype=torch.int32, device=DEVICE)
        return self.design(x, *self.arguments[1:5], offsets, slots, *self.arguments[7:])


@pytest.mark.parametrize(("design", "dtype"), [(recompute, FULL), (extend, HALF)])
def test_row_has_the_same_bits_alone_and_in_a_batch(design: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    layer = Layer(dtype, design)
    segments = [(7, 4), (0, 1), (3, -1), (30, 2), (1, 0), (19, 3)]
    together, end = layer(layer.x, segments), 0
    for rows, slot in segments:
        end += rows
        if rows:
            part = slice(end - (rows + 1) // 2, end)  # the same rows at other places of another tile
            assert torch.equal(layer(layer.x[part], [((rows + 1) // 2, slot)]), together[part]), slot


@pytest.mark.parametrize(("design", "activation"), [(recompute, "none"), (recompute, "swiglu"), (extend, "none")])
def test_base_rows_have_the_bits_of_a_call_without_adapters(
    design: Callable[..., torch.Tensor], activation: str
) -> None:
    layer = Layer(HALF, design, activation)
    mixed = layer(layer.x, [(20, 4), (30, -1), (10, 2)])
    x, weight, bias, arena, adapters = layer.arguments[:5]
    offsets, slots = (torch.tensor(values, dtype=torch.int32, device=DEVICE) for values in ([0, 60], [-1]))
    bare = (x, weight, bias, arena[:0], adapters[:0], offsets, slots, *layer.arguments[7:9], None, None, None)
    assert torch.equal(mixed[20:50], design(*bare)[20:50])


@pytest.mark.parametrize("design", FUSED)
def test_padding_of_a_captured_graph_changes_nothing(design: Callable[..., torch.Tensor]) -> None:
    layer = Layer(FULL, design)
    segments = [(20, 4), (13, -1), (9, 2)]
    padded = layer.x.clone()
    padded[42:] = torch.nan
    found = layer(padded, [*segments, *[(0, 0)] * 14])
    assert torch.equal(found[:42], layer(layer.x[:42], segments))


def test_every_row_finds_its_segment() -> None:
    """Segments of all lengths around the tile's 16 rows, and runs of empty ones; y = x + the slot's own bias."""
    layer = Layer(FULL, recompute)
    case = Case("tiles", FULL, 16, (16,), ((0,),) * 7, ((1, 0),), bias=False, biased=tuple(range(7)))
    arguments = list(inputs(case, seed=11))
    arguments[1] = torch.eye(16, device=DEVICE)
    layer.arguments = tuple(arguments)
    own = arguments[11][arguments[10][:, 0, 2, None] + torch.arange(16, device=DEVICE)].cpu()
    generator = torch.Generator().manual_seed(12)
    for _ in range(4):
        lengths = torch.tensor([0, 0, 1, 15, 16, 17, 31, 32, 33])[torch.randint(9, (12,), generator=generator)]
        slots = torch.randint(-1, 7, (12,), generator=generator)
        x = torch.randn(int(lengths.sum()), 16, generator=generator)
        found = layer(x.to(DEVICE), list(zip(lengths.tolist(), slots.tolist(), strict=True)))
        bias = torch.where(slots[:, None] < 0, 0.0, own[slots])
        torch.testing.assert_close(found.cpu(), x + bias.repeat_interleave(lengths, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("centred", "dtype"), [(True, HALF), (False, FULL)])
def test_norm_gives_the_next_linear_its_u(centred: bool, dtype: torch.dtype) -> None:
    case = Case("norm", dtype, 100, (70, 37, 20), tuple((*ranks, 5) for ranks in MIXED_RANKS), MIXES["distinct"])
    arguments = inputs(case, seed=13)
    x, _, _, arena, adapters, offsets, slots = arguments[:7]
    residual, weight = torch.randn(x.shape).to(x), torch.randn(100, device=DEVICE)
    bias = torch.randn(100, device=DEVICE) if centred else None
    y, u = cuda_shrink.norm_shrink(
        x, residual, weight, bias, 1e-5, arena, adapters, offsets, slots, centred=centred
    )  # fmt: skip
    row = x.double() + residual.double()
    row = row - row.mean(1, keepdim=True) if centred else row
    expected = row * torch.rsqrt(row.square().mean(1, keepdim=True) + 1e-5) * weight
    rtol, atol = tolerance(case)
    torch.testing.assert_close(y.double(), expected + bias if bias is not None else expected, rtol=rtol, atol=atol)
    linear = (y, *arguments[1:])
    assert_numbers(multiply(*linear[:9], *linear[10:], u), linear, case)


def test_bad_input_is_refused_by_name() -> None:
    arguments = inputs(TRITON_CASES[0], seed=14)
    with pytest.raises(TypeError, match="weight"):
        lora_matmul.triton(arguments[0], arguments[1].double(), *arguments[2:])
    with pytest.raises(ValueError, match="slices"):
        lora_matmul.triton(*arguments[:7], [5], *arguments[8:])


def test_no_rows_and_no_segments() -> None:
    layer = Layer(FULL, recompute)
    assert layer(layer.x[:0], []).shape == (0, 140)
    assert layer(layer.x[:0], [(0, 2)]).shape == (0, 140)


def test_model_counts_the_base_product_and_what_comes_beside_it() -> None:
    shape = model.Shape(rows=1024, inner=768, slices=(768,), rank=16, adapters=4, itemsize=2)
    base, one, two, norm, pair = (model.cost(shape, design) for design in model.DESIGNS)
    assert base == model.Cost(2 * 1024 * 768 * 768, 2 * (2 * 1024 * 768 + 768 * 768), 1)
    # 6 tiles of 128 columns take 16 ranks each; then u, as two halves, times B.
    assert one.flops - base.flops == 2 * 1024 * 16 * (6 * 768 + 2 * 768)
    assert one.bytes - base.bytes == 2 * 4 * 16 * 2 * 768
    assert two.bytes - norm.bytes == 2 * 1024 * 768 and two.flops == norm.flops
    assert pair.bytes - two.bytes == 2 * 2 * 1024 * 768
    assert [cost.launches for cost in (base, one, two, norm, pair)] == [1, 1, 2, 1, 3]
    with pytest.raises(ValueError, match="design must be one of base, recompute"):
        model.cost(shape, "fused")


def test_design_follows_from_the_layer() -> None:
    recomputed = [((768,) * 3, 768, 2), ((768,), 768, 2), ((768,), 3072, 2)]
    extended = [((3072,), 768, 2), ((384,), 384, 4), ((2048, 1024, 1024), 1024, 2)]
    assert all(model.recomputes(inner, slices, size, False) for slices, inner, size in recomputed)
    assert not any(model.recomputes(inner, slices, size, False) for slices, inner, size in extended)
    assert not model.recomputes(768, (3072, 3072), 2, True)
