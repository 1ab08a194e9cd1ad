"""Ids, handles and leases: what is leased stays, what is unloaded goes with its last lease."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.adapters.registry import AdapterRegistry
from embedmux.server.errors import AdapterConflict, AdapterRejected, NotFound, Overloaded
from embedmux.server.packed import FusedLinear
from embedmux.server.records import BASE_MODEL, Adapter, Calibration, LowRank


def make_adapter(name: str, value: float = 1.0, **changes: Any) -> Adapter:
    """An adapter of rank 2 on the one linear; all its factors have the same value."""
    update = LowRank(torch.full((2, 8), value), torch.full((4, 2), value), 1.0)
    adapter = Adapter(name, f"{value:032.3f}", "", None, {}, {"query": update}, {}, 2, 96)
    return dataclasses.replace(adapter, **changes)


def make_arena(max_slots: int = 3) -> AdapterArena:
    linears = [FusedLinear("layer.0", (("query", 4),), 8)]
    return AdapterArena(linears, max_slots=max_slots, max_bytes=4096, dtype=torch.float32, device="cpu")


@pytest.fixture
def arena() -> AdapterArena:
    return make_arena()


@pytest.fixture
def registry(arena: AdapterArena) -> AdapterRegistry:
    return AdapterRegistry(arena)


def value_in(arena: AdapterArena, slot: int) -> float:
    """The value a kernel would find in factor A of the slot."""
    offset, _, rank = arena.tables["layer.0"][slot, 0].tolist()
    assert rank == 2
    values = arena.data[offset : offset + 16]
    assert bool((values == values[0]).all())
    return float(values[0])


def test_an_added_adapter_is_listed_and_leased(registry: AdapterRegistry, arena: AdapterArena) -> None:
    info = registry.add(make_adapter("legal", 5.0))
    assert registry.list() == [info]
    assert (info.handle, info.id, info.num_targets, info.max_rank) == (0, "legal", 1, 2)
    assert value_in(arena, registry.lease(info.handle)) == 5.0


def test_the_same_adapter_again_is_the_one_that_is_there(registry: AdapterRegistry, arena: AdapterArena) -> None:
    assert registry.add(make_adapter("legal")) is registry.add(make_adapter("legal"))
    assert arena.num_used_slots == 1


def test_other_weights_under_the_same_id_are_a_conflict(registry: AdapterRegistry) -> None:
    registry.add(make_adapter("legal", digest="a" * 64))
    with pytest.raises(AdapterConflict, match="'legal' is loaded with digest aaaaaaaaaaaa, not bbbbbbbbbbbb; unload"):
        registry.add(make_adapter("legal", digest="b" * 64))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": {"query": "Q: "}},
        {"task": "retrieval"},
        {"calibrations": {4: Calibration("c", 4, torch.zeros(2, 4))}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_same_weights_with_another_meaning_are_a_conflict(
    registry: AdapterRegistry, changes: dict[str, Any]
) -> None:
    registry.add(make_adapter("legal"))
    with pytest.raises(AdapterConflict, match=next(iter(changes))):
        registry.add(make_adapter("legal", **changes))


def test_an_unloaded_adapter_is_gone_at_once_when_nobody_holds_it(
    registry: AdapterRegistry, arena: AdapterArena
) -> None:
    handle = registry.add(make_adapter("legal")).handle
    registry.remove("legal")
    assert (registry.list(), registry.num_draining(), arena.num_used_slots) == ([], 0, 0)
    for call in (lambda: registry.lease(handle), lambda: registry.calibration(handle, 4)):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(NotFound, match="'legal' is not loaded"):
        registry.remove("legal")


def test_a_leased_adapter_drains(registry: AdapterRegistry, arena: AdapterArena) -> None:
    handle = registry.add(make_adapter("legal", 5.0)).handle
    slot = registry.lease(handle)
    assert registry.lease(handle) == slot
    registry.remove("legal")
    assert (registry.list(), registry.num_draining()) == ([], 1)
    with pytest.raises(NotFound):
        registry.lease(handle)
    registry.release(handle)
    assert value_in(arena, slot) == 5.0
    registry.release(handle)
    assert (registry.num_draining(), arena.num_used_slots) == (0, 0)


def test_a_new_version_loads_while_the_old_one_drains(registry: AdapterRegistry, arena: AdapterArena) -> None:
    old = registry.add(make_adapter("legal", 1.0))
    old_slot = registry.lease(old.handle)
    registry.remove("legal")
    new = registry.add(make_adapter("legal", 2.0))
    assert new.handle != old.handle
    assert value_in(arena, registry.lease(new.handle)) == 2.0
    assert value_in(arena, old_slot) == 1.0


def test_leases_go_back_several_at_once(registry: AdapterRegistry, arena: AdapterArena) -> None:
    handle = registry.add(make_adapter("legal")).handle
    for _ in range(3):
        registry.lease(handle)
    registry.remove("legal")
    registry.release(handle, 3)
    assert arena.num_used_slots == 0


def test_the_bare_model_needs_no_lease(arena: AdapterArena) -> None:
    calibration = Calibration("c", 4, torch.zeros(2, 4))
    registry = AdapterRegistry(arena, {4: calibration})
    assert registry.lease(BASE_MODEL) == BASE_MODEL
    registry.release(BASE_MODEL)
    assert registry.calibration(BASE_MODEL, 4) is calibration
    assert registry.calibration(BASE_MODEL, 8) is None


def test_calibrations_last_as_long_as_the_leases(registry: AdapterRegistry) -> None:
    calibration = Calibration("c", 4, torch.zeros(2, 4))
    info = registry.add(make_adapter("legal", calibrations={4: calibration}))
    assert info.calibrations == {4: "c"}
    registry.lease(info.handle)
    registry.remove("legal")
    assert registry.calibration(info.handle, 4) is calibration
    assert registry.calibration(info.handle, 8) is None


@pytest.mark.parametrize("error", [Overloaded, AdapterRejected])
def test_a_failed_add_changes_nothing(registry: AdapterRegistry, error: type[Exception]) -> None:
    infos = [registry.add(make_adapter(name)) for name in "abc"]
    targets = {"other": LowRank(torch.zeros(1, 8), torch.zeros(4, 1), 1.0)}
    changes: dict[str, Any] = {"targets": targets} if error is AdapterRejected else {}
    with pytest.raises(error):
        registry.add(make_adapter("d", **changes))
    assert registry.list() == infos
    registry.remove("a")
    assert registry.add(make_adapter("d")).handle == 3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_leased_slot_keeps_its_weights_through_any_traffic(data: st.DataObject) -> None:
    arena = make_arena()
    registry = AdapterRegistry(arena)
    leases: list[tuple[int, int, float]] = []  # handle, slot, value
    values: dict[int, float] = {}
    for step in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["add", "remove", "lease", "release"]))
        ready = registry.list()
        if action == "add":
            name = data.draw(st.sampled_from("abcd"))
            try:
                info = registry.add(make_adapter(name, float(step + 1)))
            except (AdapterConflict, Overloaded):
                continue
            assert info.handle not in values
            values[info.handle] = float(step + 1)
        elif action == "remove" and ready:
            registry.remove(data.draw(st.sampled_from(ready)).id)
        elif action == "lease" and ready:
            handle = data.draw(st.sampled_from(ready)).handle
            leases.append((handle, registry.lease(handle), values[handle]))
        elif action == "release" and leases:
            registry.release(leases.pop(data.draw(st.integers(0, len(leases) - 1)))[0])
        for _, slot, value in leases:
            assert value_in(arena, slot) == value
    for info in registry.list():
        registry.remove(info.id)
    for handle, _, _ in leases:
        registry.release(handle)
    assert (arena.num_used_slots, arena.num_used_bytes, registry.num_draining()) == (0, 0, 0)


def test_threads_may_load_and_unload_while_another_leases(registry: AdapterRegistry, arena: AdapterArena) -> None:
    handle = registry.add(make_adapter("kept", 7.0)).handle
    failures: list[BaseException] = []

    def reload(name: str) -> None:
        try:
            for value in range(100):
                registry.add(make_adapter(name, float(value)))
                registry.remove(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=reload, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for _ in range(300):
        assert value_in(arena, registry.lease(handle)) == 7.0
        registry.release(handle)
    for thread in threads:
        thread.join()
    assert not failures
    assert arena.num_used_slots == 1
