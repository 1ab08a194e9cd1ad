"""Loaded adapters by id and by handle, and the leases that keep one in its slot while a text is on its way.

An adapter is ready from ``add`` to ``remove``, then draining until its last lease is back; its slot and memory are
freed only after that. Hence a region that a batch in flight reads is never overwritten, and a new adapter may take the
id of a draining one: it gets another handle and another slot.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.adapters.files import reject
from embedmux.server.adapters.merged import MergedWeights, Staged
from embedmux.server.errors import AdapterConflict, NotFound
from embedmux.server.facts import AdapterInfo
from embedmux.server.records import BASE_MODEL, Adapter, Calibration, Placement


@dataclass(slots=True)
class _Loaded:
    info: AdapterInfo
    slot: int
    calibrations: Mapping[int, Calibration]
    num_leases: int = 0
    is_draining: bool = False


class AdapterRegistry:
    """Every method may be called from any thread; the arena is only touched under the registry's lock.

    Reading and staging an adapter happen before the lock is taken, so a load holds up the device thread for one copy.
    ``base_calibrations``: the bare model's, by dimensions. ``merged``: who merges adapters, None where nobody does.
    """

    def __init__(
        self,
        arena: AdapterArena,
        base_calibrations: Mapping[int, Calibration] | None = None,
        merged: MergedWeights | None = None,
    ) -> None:
        self._arena = arena
        self._merged = merged
        self._base_calibrations = dict(base_calibrations or {})
        self._lock = threading.Lock()
        self._handles = itertools.count()  # int32 on the wire; never reused, so a late text cannot meet another adapter
        self._loaded: dict[int, _Loaded] = {}  # by handle, draining ones included
        self._ready: dict[str, int] = {}  # handle by id

    def add(self, adapter: Adapter, placement: Placement = Placement.LOW_RANK) -> AdapterInfo:
        """Load an adapter; the same one again returns what is there.

        Raises AdapterConflict when the id is taken by another, AdapterRejected when it can never fit, Overloaded when
        it does not fit now.
        """
        with self._lock:
            present = self._present(adapter, placement)
            if present is None and self._merged is not None and placement is Placement.MERGED:
                # Copies may be as large as the model: none is made that could not be placed.
                self._arena.expect_room(adapter.id, self._merged.num_bytes(adapter))
        if present is not None:
            return present
        merged: Staged = {}
        if placement is Placement.LOW_RANK:
            staged = self._arena.stage(adapter)
        elif self._merged is not None:
            staged, merged = self._merged.stage(adapter)
        else:
            reject(f"adapter {adapter.id!r}", "merged placement is served on the CPU only; load it as low-rank")
        with self._lock:
            present = self._present(adapter, placement)  # another thread may have added it in the meantime
            if present is not None:
                return present
            slot = self._arena.place(staged)
            if self._merged is not None and placement is Placement.MERGED:
                self._merged.place(slot, merged)
            handle = next(self._handles)
            info = AdapterInfo(
                handle=handle,
                id=adapter.id,
                digest=adapter.digest,
                task=adapter.task,
                prompts=dict(adapter.prompts),
                calibrations=_ids(adapter.calibrations),
                max_rank=adapter.max_rank,
                num_bytes=adapter.num_bytes if placement is Placement.LOW_RANK else staged.num_bytes,
                num_targets=len(adapter.targets),
                placement=placement.value,
                path=adapter.path,
            )
            self._loaded[handle] = _Loaded(info, slot, dict(adapter.calibrations))
            self._ready[adapter.id] = handle
            return info

    def remove(self, adapter_id: str) -> None:
        """Unload: texts can no longer take a lease; memory is freed with the last lease. Raises NotFound."""
        with self._lock:
            handle = self._ready.pop(adapter_id, None)
            if handle is None:
                raise NotFound(f"adapter {adapter_id!r} is not loaded; list the adapters to see which are")
            self._loaded[handle].is_draining = True
            self._free_if_unused(handle)

    def lease(self, handle: int, count: int = 1) -> int:
        """The slot of a ready adapter, pinned until ``count`` leases are back; BASE_MODEL for BASE_MODEL.

        Raises NotFound.
        """
        if handle == BASE_MODEL:
            return BASE_MODEL
        with self._lock:
            loaded = self._loaded.get(handle)
            if loaded is None or loaded.is_draining:
                raise NotFound(f"the adapter with handle {handle} was unloaded; load it again and repeat the request")
            loaded.num_leases += count
            return loaded.slot

    def release(self, handle: int, count: int = 1) -> None:
        """Give ``count`` leases back."""
        if handle == BASE_MODEL:
            return
        with self._lock:
            loaded = self._loaded[handle]
            assert loaded.num_leases >= count, f"{count} leases returned, {loaded.num_leases} are out"
            loaded.num_leases -= count
            self._free_if_unused(handle)

    def calibration(self, handle: int, dimensions: int) -> Calibration | None:
        """The ranges for vectors of this adapter (BASE_MODEL for the bare model), None when it has none of that size.

        Also answers for a draining adapter, whose last texts still need their codes. Raises NotFound.
        """
        if handle == BASE_MODEL:
            return self._base_calibrations.get(dimensions)
        with self._lock:
            loaded = self._loaded.get(handle)
        if loaded is None:
            raise NotFound(f"the adapter with handle {handle} was unloaded; load it again and repeat the request")
        return loaded.calibrations.get(dimensions)

    def list(self) -> list[AdapterInfo]:
        """Ready adapters, in the order they were added."""
        with self._lock:
            return [self._loaded[handle].info for handle in self._ready.values()]

    def residency(self) -> dict[str, int]:
        """How many adapters are in service and drain, and what they take of the memory that they may, in bytes."""
        with self._lock:
            return {
                "ready": len(self._ready),
                "draining": len(self._loaded) - len(self._ready),
                "used_bytes": self._arena.num_used_bytes,
                "max_bytes": self._arena.max_bytes,
            }

    def num_draining(self) -> int:
        """Adapters that were removed and wait for their last lease."""
        with self._lock:
            return len(self._loaded) - len(self._ready)

    def _present(self, adapter: Adapter, placement: Placement) -> AdapterInfo | None:
        """The ready adapter of that id when it is the same one. Raises AdapterConflict."""
        handle = self._ready.get(adapter.id)
        if handle is None:
            return None
        info = self._loaded[handle].info
        if info.digest != adapter.digest:
            raise AdapterConflict(
                f"adapter {adapter.id!r} is loaded with digest {info.digest[:12]}, not {adapter.digest[:12]}; "
                "unload it first"
            )
        asked = {
            "task": (info.task, adapter.task),
            "placement": (info.placement, placement.value),
            "prompts": (info.prompts, adapter.prompts),
            "calibrations": (info.calibrations, _ids(adapter.calibrations)),
        }
        for what, (loaded, wanted) in asked.items():
            if loaded != wanted:
                raise AdapterConflict(
                    f"adapter {adapter.id!r} is loaded with digest {info.digest[:12]} and {what} {loaded!r}, "
                    f"not {wanted!r}; unload it first"
                )
        return info

    def _free_if_unused(self, handle: int) -> None:
        loaded = self._loaded[handle]
        if loaded.is_draining and loaded.num_leases == 0:
            del self._loaded[handle]
            if self._merged is not None:
                self._merged.evict(loaded.slot)
            self._arena.evict(loaded.slot)


def _ids(calibrations: Mapping[int, Calibration]) -> dict[int, str]:
    return {dimensions: calibration.id for dimensions, calibration in calibrations.items()}
