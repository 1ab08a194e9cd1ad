"""Factors stand in the arena exactly as the kernel reads them, and adapters never touch each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.errors import AdapterRejected, Overloaded
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Adapter, LowRank

LINEARS = (
    FusedLinear("layer.0.qkv", (("query", 8), ("key", 6), ("value", 5)), 12),
    FusedLinear("layer.0.output", (("output", 12),), 19),
)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = {target: (linear.in_features, width) for linear in LINEARS for target, width in linear.slices}


def make_adapter(name: str, ranks: dict[str, int], *, seed: int = 0, scale: float = 0.75) -> Adapter:
    """An adapter with random factors of these ranks."""
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for target, rank in ranks.items():
        in_features, width = SHAPES[target]
        a = torch.randn(rank, in_features, generator=generator)
        targets[target] = LowRank(a, torch.randn(width, rank, generator=generator), scale)
    return Adapter(name, f"digest-{name}", "", None, {}, targets, {}, max(ranks.values()), 0)


def make_arena(
    *, max_slots: int = 4, max_bytes: int = 1 << 14, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> AdapterArena:
    return AdapterArena(LINEARS, max_slots=max_slots, max_bytes=max_bytes, dtype=dtype, device=device)


def stored(arena: AdapterArena, slot: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Factors by target as a kernel finds them: A [rank, in], B transposed [rank, width]."""
    found = {}
    data = arena.data.cpu()
    for linear in LINEARS:
        for (target, width), row in zip(linear.slices, arena.tables[linear.name][slot].tolist(), strict=True):
            a, b, rank = row
            if rank:
                a_end, b_end = a + rank * linear.in_features, b + rank * width
                found[target] = (data[a:a_end].view(rank, -1), data[b:b_end].view(rank, width))
    return found


def assert_holds(arena: AdapterArena, slot: int, adapter: Adapter) -> None:
    found = stored(arena, slot)
    assert found.keys() == adapter.targets.keys()
    for target, update in adapter.targets.items():
        assert torch.equal(found[target][0], update.a.to(arena.dtype))
        assert torch.equal(found[target][1], (update.b * update.scale).T.to(arena.dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_stored_with_the_scale_folded_in_before_the_cast(dtype: torch.dtype, device: str) -> None:
    arena = make_arena(dtype=dtype, device=device)
    adapter = make_adapter("legal", {"query": 3, "value": 1, "output": 7})
    assert_holds(arena, arena.place(adapter), adapter)


def test_a_slice_without_update_has_rank_zero() -> None:
    arena = make_arena()
    slot = arena.place(make_adapter("legal", {"key": 2}))
    assert arena.tables["layer.0.qkv"][slot, :, 2].tolist() == [0, 2, 0]
    assert not arena.tables["layer.0.output"][slot].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_start_on_cache_lines(dtype: torch.dtype) -> None:
    arena = make_arena(dtype=dtype)
    arena.place(make_adapter("first", {"query": 1}))
    slot = arena.place(make_adapter("second", {"query": 3, "key": 1, "output": 1}))
    offsets = torch.cat([table[slot, :, :2].flatten() for table in arena.tables.values()])
    assert not (offsets * dtype.itemsize % 64).any()


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_placing_and_evicting_never_disturbs_another_adapter(device: str, data: st.DataObject) -> None:
    arena = make_arena(max_slots=5, max_bytes=6000, device=device)
    placed: dict[int, Adapter] = {}
    for step, is_eviction in enumerate(data.draw(st.lists(st.booleans(), max_size=25))):
        if placed and is_eviction:
            slot = data.draw(st.sampled_from(sorted(placed)))
            arena.evict(slot)
            del placed[slot]
            assert not any(table[slot].any() for table in arena.tables.values())
        else:
            ranks = st.dictionaries(st.sampled_from(sorted(SHAPES)), st.integers(1, 9), min_size=1)
            adapter = make_adapter(f"a{step}", data.draw(ranks), seed=step)
            try:
                placed[arena.place(adapter)] = adapter
            except Overloaded:
                assert len(placed) == 5 or arena.num_used_bytes > 0
        for slot, adapter in placed.items():
            assert_holds(arena, slot, adapter)
        assert arena.num_used_slots == len(placed)
    for slot in placed:
        arena.evict(slot)
    assert arena.num_used_bytes == 0


def test_a_full_arena_says_so_and_takes_the_adapter_after_an_eviction() -> None:
    arena = make_arena(max_bytes=1024)
    slot = arena.place(make_adapter("first", {"query": 8}))
    second = make_adapter("second", {"query": 8})
    with pytest.raises(Overloaded, match=r"adapter 'second': needs 640 bytes .* 640 of 1024 are taken"):
        arena.place(second)
    arena.evict(slot)
    assert_holds(arena, arena.place(second), second)


def test_slots_run_out_by_name_and_are_used_again() -> None:
    arena = make_arena(max_slots=2)
    assert [arena.place(make_adapter(name, {"key": 1})) for name in ("a", "b")] == [0, 1]
    with pytest.raises(Overloaded, match="adapter 'c': all 2 adapter slots are taken"):
        arena.place(make_adapter("c", {"key": 1}))
    arena.evict(0)
    assert arena.place(make_adapter("c", {"key": 1})) == 0


def test_an_adapter_that_can_never_fit_is_rejected() -> None:
    with pytest.raises(AdapterRejected, match=r"adapter 'legal': needs \d+ bytes .* limit for all is 512"):
        make_arena(max_bytes=512).place(make_adapter("legal", {"output": 9}))


def test_an_adapter_that_overflows_the_dtype_is_rejected() -> None:
    adapter = make_adapter("legal", {"key": 2}, scale=1e6)
    assert make_arena(dtype=torch.bfloat16).place(adapter) == 0
    with pytest.raises(AdapterRejected, match=r"overflow torch.float16"):
        make_arena(dtype=torch.float16).place(adapter)


def test_foreign_modules_and_shapes_are_rejected() -> None:
    stray = LowRank(torch.zeros(1, 12), torch.zeros(9, 1), 1.0)
    for target, word in (("pooler", "not a linear"), ("query", "12 -> 8")):
        adapter = Adapter("legal", "", "", None, {}, {target: stray}, {}, 1, 0)
        with pytest.raises(AdapterRejected, match=f"module '{target}' .*{word}"):
            make_arena().place(adapter)


def test_a_failed_placement_leaves_no_trace() -> None:
    arena = make_arena(max_bytes=1024)
    first = make_adapter("first", {"query": 8})
    slot = arena.place(first)
    with pytest.raises(Overloaded):
        arena.place(make_adapter("second", {"query": 8}))
    assert (arena.num_used_slots, arena.num_used_bytes) == (1, 640)
    assert_holds(arena, slot, first)
