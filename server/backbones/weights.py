"""safetensors -> named tensors, strictly: nothing missing, nothing left over, nothing unpickled."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from embedmux.server.errors import ModelRejected

CHUNK_BYTES = 1 << 22


class Checkpoint:
    """The tensors of a model folder, taken one by one; ``finish`` refuses what nobody took.

    ``digest`` is the SHA-256 of the weight files in hex. On the meta device no file is opened, and ``take`` gives
    tensors of shapes alone (dry_run.py).
    """

    def __init__(
        self, folder: Path, *, prefixes: tuple[str, ...], ignored: Callable[[str], bool], device: torch.device
    ) -> None:
        self.folder = folder
        self.device = device
        self._files = [] if device.type == "meta" else _weight_files(folder)
        self._where = {}
        for path in self._files:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    short = next((name.removeprefix(p) for p in prefixes if name.startswith(p)), name)
                    if not ignored(short):
                        self._where[short] = (path, name)

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor as float32 on the device, of exactly this shape; raises ModelRejected naming it otherwise."""
        if self.device.type == "meta":
            return torch.empty(shape, device="meta")
        if name not in self._where:
            raise ModelRejected(f"model {self.folder.name!r}: tensor {name!r} is missing from its safetensors")
        path, stored = self._where.pop(name)
        with safe_open(path, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(stored)
        if tuple(tensor.shape) != shape:
            raise ModelRejected(
                f"model {self.folder.name!r}: tensor {name!r} is {list(tensor.shape)}, config.json says {list(shape)}"
            )
        return tensor.to(self.device, torch.float32)

    def finish(self) -> None:
        """Raises ModelRejected when the files hold tensors the backbone did not take."""
        if self._where:
            left = sorted(self._where)
            raise ModelRejected(f"model {self.folder.name!r}: {len(left)} tensors are unknown, first {left[:3]}")

    def digest(self) -> str:
        """SHA-256 over the weight files' bytes."""
        found = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
        return found.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelRejected(f"model {folder.name!r} has no model.safetensors; other formats are not read (no pickle)")
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelRejected(f"model {folder.name!r}: the index names files outside the folder: {outside}")
    return [folder / name for name in names]
