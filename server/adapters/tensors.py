"""Safetensors files, checked by their header before a byte of weights is read.

Layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch

from embedmux.server.adapters.files import parse_object, reject, shown
from embedmux.server.errors import AdapterRejected

MAX_HEADER_BYTES = 4 << 20
MAX_AXES = 4
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Shapes = dict[str, tuple[int, ...]]


def read_tensors(path: Path, owner: str, accept: Callable[[Shapes], None]) -> dict[str, torch.Tensor]:
    """All tensors of a file in their stored dtype, float64, float32, float16 or bfloat16.

    ``accept`` sees names and shapes first and raises to refuse them, so a file full of foreign weights is never read.
    The whole file is read into memory rather than mapped: a file cut while it is mapped would kill the process.
    """
    where = f"{owner}: {path.name!r}"
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header = _header(file, size, where)
            shapes, data_bytes = _shapes(parse_object(header, f"{where} header"), where)
            if 8 + len(header) + data_bytes != size:
                reject(where, f"has {size} bytes, its header asks for {8 + len(header) + data_bytes}; copy it again")
            accept(shapes)
            raw = len(header).to_bytes(8, "little") + header + file.read(data_bytes)
    except OSError as error:
        reject(where, f"cannot be read: {error.strerror}")
    try:
        return safetensors.torch.load(raw)
    except safetensors.SafetensorError as error:
        raise AdapterRejected(f"{where} is broken: {error}") from error


def _header(file: BinaryIO, size: int, where: str) -> bytes:
    if size < 8:
        reject(where, f"has {size} bytes, too few for a safetensors header; copy it again")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        reject(where, f"claims a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    header = file.read(length)
    if len(header) != length:
        reject(where, f"is truncated: the header has {len(header)} of {length} bytes; copy it again")
    return header


def _shapes(header: dict[str, object], where: str) -> tuple[Shapes, int]:
    """Shape by tensor name, and the bytes of data they take together."""
    shapes: Shapes = {}
    total = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            reject(where, f"tensor {shown(name)} has the header entry {shown(entry)}, not an object")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            reject(where, f"tensor {shown(name)} has dtype {shown(dtype)}; only {', '.join(ITEM_BYTES)} are served")
        # Bounds on the numbers keep the sum below one that Python would refuse to print.
        if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_length, shape)):
            reject(where, f"tensor {shown(name)} has shape {shown(shape)}, not a list of at most {MAX_AXES} lengths")
        shapes[name] = tuple(shape)
        total += math.prod(shape) * ITEM_BYTES[dtype]
    return shapes, total


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
