"""What only lora_matmul promises: the same bits for a row in any batch, base rows untouched, precise refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedmux.kernels import ops
from embedmux.kernels.lora_matmul import GATED, lora_matmul, pack_weight
from embedmux.kernels.lora_matmul.cases import CASES, Arguments, Case, make_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS, SLOTS = 1200, (-1, 0, 1, 2)
SEGMENTS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(SLOTS)), min_size=1, max_size=20)
needs_extension = pytest.mark.skipif(not ops.HAS_EXTENSION, reason="the reference does not promise row bits")


class Layer:
    """One packed layer with three slots, every row of it computed alone with every slot's adapter.

    With ``overrides`` slot 0 is merged, slots 0 and 2 scale their columns, slots 1 and 2 bring a bias.
    """

    def __init__(self, dtype: torch.dtype, activation: str = "gelu", *, overrides: bool = False) -> None:
        ranks: tuple[tuple[int, ...], ...] = ((16, 7, 0), (12, 1, 33), (0, 0, 16))
        slices: tuple[int, ...] = (96, 100, 45)
        if activation in GATED:
            ranks, slices = tuple(row[:2] for row in ranks), (96, 96)
        case = Case("layer", dtype, 200, slices, ranks, ((ROWS, -1),), True, activation)
        if overrides:
            case = replace(case, merged=(0,), scaled=(0, 2), biased=(1, 2))
        self.arguments = make_inputs(case, seed=3)
        self.x = self.arguments[0]
        self.packed = pack_weight(self.arguments[1])
        self.expected = {slot: self(self.x, [(ROWS, slot)]) for slot in SLOTS}

    def __call__(self, x: torch.Tensor, segments: list[tuple[int, int]]) -> torch.Tensor:
        offsets = torch.tensor([0, *(rows for rows, _ in segments)]).cumsum(0).int()
        slots = torch.tensor([slot for _, slot in segments], dtype=torch.int32)
        shared, described, overridden = self.arguments[1:5], self.arguments[7:9], self.arguments[10:]
        result: torch.Tensor = lora_matmul(x, *shared, offsets, slots, *described, self.packed, *overridden)
        return result

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """All rows with the base model, no overrides given."""
        none, offsets = torch.tensor([-1], dtype=torch.int32), torch.tensor([0, x.size(0)], dtype=torch.int32)
        result: torch.Tensor = lora_matmul(x, *self.arguments[1:5], offsets, none, *self.arguments[7:9], self.packed)
        return result

    def check(self, rows: torch.Tensor, segments: list[tuple[int, int]]) -> None:
        """Compares a batch of the given rows with the same rows of the large batch of one slot."""
        slots = [slot for count, slot in segments for _ in range(count)]
        expected = [self.expected[slot][row] for slot, row in zip(slots, rows.tolist(), strict=True)]
        result = self(self.x[rows], segments)
        assert torch.equal(result, torch.stack(expected) if expected else result)


@pytest.fixture(scope="module", params=[(dtype, False) for dtype in DTYPES] + [(torch.bfloat16, True)], ids=str)
def layer(request: pytest.FixtureRequest) -> Layer:
    dtype, overrides = request.param
    return Layer(dtype, overrides=overrides)


@needs_extension
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_packed_weight_changes_no_bits(case: Case, isa: str) -> None:
    arguments = make_inputs(case, seed=1)
    packed = pack_weight(arguments[1])
    assert torch.equal(lora_matmul(*arguments[:9], packed, *arguments[10:]), lora_matmul(*arguments))


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_has_the_same_bits_on_every_instruction_set_alone_and_among_others(dtype: torch.dtype, isa: str) -> None:
    layer = Layer(dtype)
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 15, 33, 130, 700):
        picked = torch.randperm(ROWS, generator=generator)[:rows]
        for slot in SLOTS:
            layer.check(picked, [(rows // 3, -1), (rows - rows // 3, slot)])


@needs_extension
@pytest.mark.parametrize("activation", ("none", "silu", "swiglu"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_of_a_slot_with_overrides_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, activation: str, isa: str
) -> None:
    layer = Layer(dtype, activation, overrides=True)
    for rows, segments in (
        (1, [(1, 0)]),
        (3, [(1, 2), (1, 0), (1, 1)]),
        (130, [(40, 0), (3, 0), (50, -1), (0, 1), (20, 2), (17, 1)]),
        (70, [(10, 0), (10, -1), (20, 0), (30, 2)]),
    ):
        layer.check(torch.arange(rows) * 3 + 5, segments)


@needs_extension
def test_row_has_the_same_bits_at_every_batch_size(layer: Layer) -> None:
    for rows in range(1, 131):
        layer.check(torch.arange(rows) + rows, [(rows // 2, 1), (rows - rows // 2, rows % 4 - 1)])


@needs_extension
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=SEGMENTS, seed=st.integers(0, 2**31), count=st.integers(1, 5))
def test_row_has_the_same_bits_in_any_mixture(
    layer: Layer, threads: None, segments: list[tuple[int, int]], seed: int, count: int
) -> None:
    torch.set_num_threads(count)
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))[: sum(size for size, _ in segments)]
    layer.check(rows, segments)


@needs_extension
def test_row_has_the_same_bits_between_products_by_onednn(layer: Layer) -> None:
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    expected = x @ x
    for _ in range(3):
        layer.check(torch.arange(50), [(20, 0), (30, 2)])
        assert torch.equal(x @ x, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ("none", "gelu", "geglu"))
@pytest.mark.parametrize("overrides", (False, True))
def test_base_rows_are_bit_equal_to_a_call_without_adapters(
    dtype: torch.dtype, activation: str, overrides: bool
) -> None:
    layer = Layer(dtype, activation, overrides=overrides)
    x = layer.x[:90]
    mixed, base = layer(x, [(20, 0), (45, -1), (25, 1)]), layer.base(x)
    assert torch.equal(mixed[20:65], base[20:65])
    assert not torch.equal(mixed[:20], base[:20])
    assert not torch.equal(mixed[65:], base[65:])


def test_call_of_no_rows_gives_no_rows(layer: Layer) -> None:
    assert layer(layer.x[:0], []).shape == (0, 241)


def _with(position: int, change: Callable[[Any], Any]) -> Callable[[Arguments], list[Any]]:
    return lambda arguments: [change(a) if i == position else a for i, a in enumerate(arguments)]


def _factors(offset: int) -> Callable[[Any], Any]:
    def moved(adapters: torch.Tensor) -> torch.Tensor:
        adapters = adapters.clone()
        adapters[2, 0, 0] = offset
        return adapters

    return moved


def _override(field: int, offset: int) -> Callable[[Arguments], list[Any]]:
    """Overrides of which slot 2 has one, beside columns of 300 elements."""

    def changed(arguments: Arguments) -> list[Any]:
        overrides = torch.full_like(arguments[4], -1)
        overrides[2, 0, field] = offset
        return [*arguments[:10], overrides, torch.zeros(300)]

    return changed


REFUSALS: dict[str, tuple[Callable[[Arguments], list[Any]], str]] = {
    "x_of_another_width": (_with(0, lambda x: x[:, :-1].contiguous()), "weight must"),
    "x_of_three_dimensions": (_with(0, lambda x: x[None]), "x must"),
    "weight_of_another_dtype": (_with(1, lambda w: w.to(torch.bfloat16)), "weight must be"),
    "bias_of_another_length": (_with(2, lambda b: b[:-1].contiguous()), "bias must"),
    "arena_of_another_dtype": (_with(3, lambda a: a.double()), "arena must be"),
    "adapters_of_another_number_of_slices": (_with(4, lambda a: a[:, :-1].contiguous()), "adapters must"),
    "offsets_that_end_early": (_with(5, lambda o: o.clamp(max=50)), "segment_offsets must"),
    "offsets_that_fall": (_with(5, lambda o: o[torch.tensor([0, 2, 1, 3])]), "segment_offsets must"),
    "offsets_of_another_length": (_with(5, lambda o: o[[0, 3]]), "segment_"),
    "slot_past_the_last": (_with(6, lambda s: s + 2), "segment_slots must be in -1..2"),
    "slot_below_minus_one": (_with(6, lambda s: s - 3), "segment_slots must be in -1..2"),
    "slices_that_do_not_sum": (_with(7, lambda s: [*s[:-1], s[-1] + 1]), "slices must"),
    "slices_with_a_negative_width": (_with(7, lambda s: [-1, s[0] + s[1] + 1, s[2]]), "slices must"),
    "unknown_activation": (_with(8, lambda _: "tanh"), "activation must be one of none, "),
    "gated_over_three_slices": (_with(8, lambda _: "swiglu"), "slices must|slices .* must"),
    "overrides_of_another_shape": (_with(10, lambda _: torch.zeros(3, 2, 3, dtype=torch.int64)), "overrides must"),
    "overrides_without_columns": (_with(10, lambda _: torch.zeros(3, 3, 3, dtype=torch.int64)), "columns must"),
}
COMPILED_REFUSALS: dict[str, tuple[Callable[[Arguments], list[Any]], str]] = {
    "factors_past_the_arena": (_with(4, _factors(10**9)), "adapters"),
    "factors_before_the_arena": (_with(4, _factors(-1)), "adapters"),
    "merged_weight_past_the_arena": (_override(0, 10**9), r"overrides\[2\]\[0\] must name a weight of 10000 "),
    "scale_past_the_columns": (_override(1, 201), r"overrides\[2\]\[0\] must name a scale of 100 "),
    "bias_before_the_columns": (_override(2, -2), r"overrides\[2\]\[0\] must name a bias of 100 "),
    "overrides_of_another_dtype": (
        lambda a: [*a[:10], torch.zeros(3, 3, 3, dtype=torch.int32), torch.zeros(9)],
        "overrides must be",
    ),
    "columns_of_another_dtype": (lambda a: [*a[:10], a[4], torch.zeros(9).double()], "columns must be"),
    "x_that_is_not_contiguous": (_with(0, lambda x: x.T.contiguous().T), "x must be contiguous"),
    "offsets_of_another_dtype": (_with(5, lambda o: o.long()), "segment_offsets must be"),
    "weight_packed_for_another_shape": (_with(9, lambda _: pack_weight(torch.zeros(8, 100))), "packed must be"),
    "weight_packed_for_another_dtype": (
        lambda a: [*a[:9], pack_weight(a[1].bfloat16()).bfloat16(), *a[10:]],
        "packed must be",
    ),
    "x_in_float64": (
        lambda a: [t.double() if i < 4 else t for i, t in enumerate(a)],  # type: ignore[union-attr]
        "x must be float32, bfloat16 or float16",
    ),
}


@pytest.mark.parametrize("name", [*REFUSALS, *COMPILED_REFUSALS])
def test_broken_contract_is_refused_by_name(name: str) -> None:
    if name in COMPILED_REFUSALS and not ops.HAS_EXTENSION:
        pytest.skip("the compiled kernel checks more")
    broken, message = (REFUSALS | COMPILED_REFUSALS)[name]
    case = next(case for case in CASES if case.name == "slices_across_panels_float32")
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        lora_matmul(*broken(make_inputs(case, seed=4)))


@needs_extension
def test_layout_of_wider_registers_is_refused_below_them() -> None:
    if ops.cpu_isa() != "amx":
        pytest.skip("this processor has no AMX")
    layer = Layer(torch.bfloat16)
    torch.ops.embedmux.set_max_cpu_isa("avx512")
    try:
        with pytest.raises(RuntimeError, match="pack the weight again"):
            layer(layer.x, [(ROWS, 0)])
    finally:
        torch.ops.embedmux.set_max_cpu_isa("amx")


def test_override_of_nothing_needs_no_room() -> None:
    """-1 is no place: it stands in a table beside columns shorter than a slice."""
    case = next(case for case in CASES if case.name == "overrides_all_float32")
    arguments = list(make_inputs(case, seed=5))
    arguments[10] = torch.full_like(arguments[10], -1)
    arguments[11] = torch.zeros(1)
    plain = lora_matmul(*arguments[:10])
    assert torch.equal(lora_matmul(*arguments), plain)
