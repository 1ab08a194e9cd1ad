"""Shapes of tensors from the headers of safetensors files, which are JSON: nothing else of a file is read."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from embedmux.server.checkpoint.folder import ModelFolder

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
LENGTH_BYTES = 8
Shapes = dict[str, tuple[int, ...]]


def file_shapes(folder: ModelFolder, name: str) -> Shapes:
    """Every tensor of one file with its shape; raises ModelRejected for a file that is missing, cut off or no such."""
    path = folder.path / name
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                folder.reject(
                    f"{name} is cut off or no safetensors file: it has {size} bytes, its header says {length}"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        folder.reject(f"{name} is missing; other formats are not read (no pickle)")
    except (OSError, ValueError, RecursionError) as error:
        folder.reject(f"cannot read the header of {name}: {error}")
    if not isinstance(header, dict):
        folder.reject(f"the header of {name} holds {type(header).__name__}, not an object")
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    found = {key: _shape(folder, name, key, value) for key, value in tensors.items()}
    end = max((value["data_offsets"][1] for value in tensors.values()), default=0)
    if LENGTH_BYTES + length + end != size:
        folder.reject(f"{name} has {size} bytes, its header speaks of {LENGTH_BYTES + length + end}; copy it again")
    return found


def model_shape(folder: ModelFolder, name: str) -> tuple[int, ...] | None:
    """The shape of a tensor of model.safetensors, or of the shard that the index names; None where there is none."""
    index = "model.safetensors.index.json"
    file = "model.safetensors"
    if not folder.has(file) and folder.has(index):
        file = folder.config(index).section("weight_map").string(name, "")
        if not file:
            return None
        if "/" in file or "\\" in file:
            folder.reject(f"{index}: {file!r} leads out of the folder")
    return file_shapes(folder, file).get(name)


def _shape(folder: ModelFolder, file: str, name: str, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        folder.reject(f"the header of {file} is malformed at tensor {name!r}")
    return tuple(shape)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
