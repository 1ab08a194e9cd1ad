"""One flat tensor that holds the low-rank factors of every loaded adapter, with exact ranks and no padding between.

An adapter takes one contiguous region, so loading it is one copy to the device. Kernels find a factor through
``tables[linear][slot, slice] = (a_offset, b_offset, rank)``, offsets in elements of ``data``; rank 0 means that the
adapter leaves that slice alone. A text's slot is all that changes between batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from embedmux.server.adapters.files import reject
from embedmux.server.errors import Overloaded
from embedmux.server.free_list import FreeList
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Adapter

ALIGNMENT_BYTES = 64  # a cache line on the CPU, and enough for 16-byte vector loads on the GPU
RETRY_AFTER_S = 1.0  # room appears when somebody unloads an adapter, which is a human's pace


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """An adapter as the arena stores it, still on the host: ``factors`` [n], and per linear its table row [J, 3].

    Offsets in ``rows`` count from the start of ``factors``. ``merged_bytes`` is what it takes outside the arena.
    """

    id: str
    factors: torch.Tensor
    rows: dict[str, list[tuple[int, int, int]]]
    merged_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """What it takes on the device, in the arena and outside."""
        return self.factors.numel() * self.factors.element_size() + self.merged_bytes


class AdapterArena:
    """Places adapters in ``max_slots`` slots and ``max_bytes`` of memory on one device, in one dtype.

    Not thread-safe: only the device thread calls it, or whoever holds the registry's lock. ``place`` never writes to a
    region or a table row that a text in flight reads, because the registry evicts a slot only once its last lease is
    back; it returns when the device has the data, whatever stream reads it next.
    """

    def __init__(
        self,
        linears: Sequence[FusedLinear],
        *,
        max_slots: int,
        max_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.linears = tuple(linears)
        self.max_slots = max_slots
        self.max_bytes = max_bytes
        self.dtype = dtype
        self.device = torch.device(device)
        self._alignment = ALIGNMENT_BYTES // dtype.itemsize
        num_elements = max_bytes // ALIGNMENT_BYTES * self._alignment
        # On the CPU this reserves addresses only; pages become real when an adapter is written to them.
        self.data = torch.empty(num_elements, dtype=dtype, device=self.device)
        self.tables = {
            linear.name: torch.zeros(max_slots, len(linear.slices), 3, dtype=torch.int64, device=self.device)
            for linear in self.linears
        }
        self._targets = {target for linear in self.linears for target in linear.targets}
        self._free = FreeList(num_elements, alignment=self._alignment)
        self._regions: dict[int, int | None] = {}  # start of the region by slot; None where it has no factors
        self._merged_bytes: dict[int, int] = {}  # of merged adapters, by slot
        # A load must not wait behind the batches that are queued on the device, nor they behind it.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def num_used_bytes(self) -> int:
        """Bytes that belong to adapters: of ``data``, alignment included, and of merged weights."""
        return self._free.used * self.dtype.itemsize + sum(self._merged_bytes.values())

    @property
    def num_used_slots(self) -> int:
        """Slots that hold an adapter."""
        return len(self._regions)

    def stage(self, adapter: Adapter) -> StagedAdapter:
        """The adapter's factors in the arena's layout and dtype, on the host. Touches no shared state.

        A is stored as [rank, in]; B as [rank, width], transposed and multiplied with the scale in float32 before the
        cast, so that the kernel does no scaling. Raises AdapterRejected for an adapter that can never be placed.
        """
        owner = f"adapter {adapter.id!r}"
        unknown = sorted(adapter.targets.keys() - self._targets)
        if unknown:
            reject(owner, f"module {unknown[0]!r} is not a linear of this backbone")
        pieces: list[tuple[int, torch.Tensor]] = []
        rows: dict[str, list[tuple[int, int, int]]] = {}
        end = 0

        def append(factor: torch.Tensor) -> int:
            nonlocal end
            start = end
            pieces.append((start, factor))
            end = self._aligned(start + factor.numel())
            return start

        for linear in self.linears:
            rows[linear.name] = []
            stored: dict[str, int] = {}  # where A of a linear is whose B is cut into several slices
            for target, first, width in linear.parts:
                update = adapter.targets.get(target)
                if update is None:
                    rows[linear.name].append((0, 0, 0))
                    continue
                rank, whole = len(update.a), linear.targets[target]
                if update.a.shape != (rank, whole[0]) or update.b.shape != (whole[1], rank):
                    shapes = f"{list(update.a.shape)} and {list(update.b.shape)}"
                    reject(owner, f"module {target!r} has factors {shapes} for {whole[0]} -> {whole[1]} features")
                b = update.b[first : first + width].to(torch.float32) * update.scale
                if target not in stored:
                    stored[target] = append(update.a)
                rows[linear.name].append((stored[target], append(b.T), rank))
        num_bytes = end * self.dtype.itemsize
        if num_bytes > self.max_bytes:
            reject(owner, f"needs {num_bytes} bytes on the device, the limit for all is {self.max_bytes}; raise it")
        # Zeros between the factors keep the bytes reproducible; only pinned memory is copied without a stop.
        factors = torch.zeros(end, dtype=self.dtype, pin_memory=self.device.type == "cuda")
        for start, factor in pieces:
            factors[start : start + factor.numel()].view(factor.shape).copy_(factor)
        if not bool(factors.isfinite().all()):
            reject(owner, f"its factors overflow {self.dtype}; serve the model in bfloat16 or float32")
        return StagedAdapter(adapter.id, factors, rows)

    def expect_room(self, adapter_id: str, num_bytes: int) -> None:
        """Raises AdapterRejected for what can never fit, Overloaded for what does not fit now."""
        if num_bytes > self.max_bytes:
            reject(
                f"adapter {adapter_id!r}",
                f"needs {num_bytes} bytes on the device, the limit for all is {self.max_bytes}; raise it "
                "(--max-adapter-bytes)",
            )
        if self.num_used_bytes + num_bytes > self.max_bytes:
            raise self._full(adapter_id, num_bytes)

    def place(self, adapter: Adapter | StagedAdapter) -> int:
        """Write the adapter to a free slot and return the slot. Raises Overloaded when it does not fit now."""
        staged = adapter if isinstance(adapter, StagedAdapter) else self.stage(adapter)
        slot = next((slot for slot in range(self.max_slots) if slot not in self._regions), None)
        if slot is None:
            raise Overloaded(
                f"adapter {staged.id!r}: all {self.max_slots} adapter slots are taken; unload one", RETRY_AFTER_S
            )
        size = staged.factors.numel()
        needed = staged.num_bytes
        self.expect_room(staged.id, needed)
        region = self._free.allocate(size) if size else None
        if size and region is None:
            raise self._full(staged.id, needed)
        start = region or 0
        self._regions[slot] = region
        self._merged_bytes[slot] = staged.merged_bytes
        with self._writing():
            self.data[start : start + size].copy_(staged.factors, non_blocking=True)
            # The rows are written last: until then the slot has rank 0 everywhere.
            for name, rows in staged.rows.items():
                moved = [(a + start, b + start, rank) if rank else (0, 0, 0) for a, b, rank in rows]
                self.tables[name][slot].copy_(torch.tensor(moved, dtype=torch.int64))
        return slot

    def evict(self, slot: int) -> None:
        """Free the slot and its memory; nobody may be reading either."""
        with self._writing():
            for table in self.tables.values():
                table[slot].zero_()
        del self._merged_bytes[slot]
        if (start := self._regions.pop(slot)) is not None:
            self._free.free(start)

    def _full(self, adapter_id: str, num_bytes: int) -> Overloaded:
        return Overloaded(
            f"adapter {adapter_id!r}: needs {num_bytes} bytes in one piece, {self.num_used_bytes} of "
            f"{self.max_bytes} are taken; unload an adapter, or raise the limit (--max-adapter-bytes)",
            RETRY_AFTER_S,
            reason="memory",
        )

    def _aligned(self, offset: int) -> int:
        return -(-offset // self._alignment) * self._alignment

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What is written inside is on the device afterwards."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # the tables' first zeros come before
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()
