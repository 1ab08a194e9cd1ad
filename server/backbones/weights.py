"""safetensors -> named tensors, strictly: nothing missing, nothing left over, nothing unpickled.

Tensors are copied one at a time out of a mapped file, so that loading takes little more memory than what is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open

from embedmux.server.errors import ModelRejected

CHUNK_BYTES = 1 << 22
PARAMETRIZED = ".parametrizations.weight.original"  # torch's name of a weight that has updates stored beside it
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The tensors of a model folder, taken one by one; ``finish`` refuses what nobody took.

    ``prefixes`` may stand before a tensor's name in the files, such as ``model.``, and are not part of it here. On the
    meta device ``take`` gives shapes alone: no file is opened (dry_run.py), or with ``reads_headers`` names and shapes
    are checked against the files' (check.py).
    """

    def __init__(
        self, folder: Path, *, prefixes: Sequence[str], device: torch.device, file: str = "model.safetensors",
        reads_headers: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.device = device
        self._prefixes, self._file = tuple(prefixes), file
        self.reads_headers = reads_headers
        self._is_blind = device.type == "meta" and not reads_headers
        self._files = [] if self._is_blind else _weight_files(folder, file)
        self._stamps = _stamps(self._files)
        self._where: dict[str, tuple[Path, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in self._files:
            self._list(path, prefixes)

    def has(self, name: str) -> bool:
        """Whether a tensor is there and was not taken; always where no file is opened."""
        return self._is_blind or name in self._where

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a stored tensor, None where there is none of that name."""
        return self._shapes.get(name)

    def find(self, kinds: dict[tuple[int, ...], bool]) -> tuple[str, bool]:
        """(name, the shape's value) of the one tensor left of these shapes, for files whose names are not known."""
        fits = [(name, kinds[self._shapes[name]]) for name in self._where if self._shapes[name] in kinds]
        if len(fits) != 1:
            self.reject(f"{len(fits)} tensors of {list(map(list, kinds))} where one is wanted: {fits}")
        return fits[0]

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One tensor on the device in ``dtype``, of exactly this shape; raises ModelRejected naming it otherwise."""
        if self._is_blind:
            return torch.empty(shape, device="meta", dtype=dtype)
        self.expect(name, shape)
        path, stored = self._where.pop(name)
        if self.device.type == "meta":
            return torch.empty(shape, device="meta", dtype=dtype)
        with _opened(path, self.folder) as tensors:
            found = torch.empty(shape, dtype=dtype, device=self.device)
            return found.copy_(tensors.get_tensor(stored))  # the mapped pages go with the file

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ModelRejected unless a tensor of that name and shape is there and was not taken."""
        if name not in self._where:
            self.reject(f"tensor {name!r} is missing from its safetensors")
        if self._shapes[name] != shape:
            self.reject(f"tensor {name!r} is {list(self._shapes[name])}, config.json says {list(shape)}")

    def reopened(self) -> Checkpoint:
        """The same files with nothing taken yet; raises ModelRejected if they are not those that were opened first."""
        found = Checkpoint(self.folder, prefixes=self._prefixes, device=self.device, file=self._file)
        if found._stamps != self._stamps:
            self.reject("its files have changed since it was loaded; start the server again")
        return found

    @property
    def num_tensors(self) -> int:
        """Tensors in the files."""
        return len(self._shapes)

    def finish(self, is_unused: Callable[[str], bool]) -> None:
        """Raises ModelRejected when the files hold tensors that nobody took and that are not known to be unused."""
        if left := sorted(name for name in self._where if not is_unused(name)):
            self.reject(f"{len(left)} tensors are unknown, first {left[:3]}")

    def digest(self) -> str:
        """SHA-256 over the weight files' bytes, in hex."""
        found = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
        return found.hexdigest()

    def reject(self, what: str) -> NoReturn:
        """Refuses the model, naming it."""
        raise ModelRejected(f"model {self.folder.name!r}: {what}")

    def _list(self, path: Path, prefixes: Sequence[str]) -> None:
        with _opened(path, self.folder) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                short = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
                short = short.replace(PARAMETRIZED, ".weight")
                if short in self._where:
                    self.reject(f"tensor {short!r} is stored twice, last in {path.name}")
                entry = tensors.get_slice(name)
                if entry.get_dtype() not in DTYPES and not short.endswith("position_ids"):
                    self.reject(f"tensor {short!r} has dtype {entry.get_dtype()}; served are {', '.join(DTYPES)}")
                self._where[short] = (path, name)
                self._shapes[short] = tuple(entry.get_shape())


def _opened(path: Path, folder: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelRejected(
            f"model {folder.name!r}: {path.name} is broken or cut off: {error}; copy it again"
        ) from error


def _stamps(files: list[Path]) -> list[tuple[int, int]]:
    """Size and time of the last change of each file, in ns."""
    return [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in files)]


def _weight_files(folder: Path, file: str) -> list[Path]:
    single, index = folder / file, folder / f"{file}.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelRejected(f"model {folder.name!r} has no {file}; other formats are not read (no pickle)")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelRejected(f"model {folder.name!r}: the index names files outside the folder: {outside}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRejected(f"model {folder.name!r}: cannot read {index.name}: {error!r}") from error
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ModelRejected(f"model {folder.name!r}: {index.name} names {missing}, which are not there")
    return [folder / name for name in names]
