"""Random weights that make a hard test, written straight into safetensors, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


@dataclass(frozen=True)
class Draw:
    """A tensor to be: normal numbers around ``mean``."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0


Plan = dict[str, Draw]  # by the name in the file
Tensors = dict[str, torch.Tensor]


def linear(out: int, inner: int, gain: float = 1.0) -> Draw:
    """[out, inner]; inputs of unit variance give outputs with a standard deviation of ``gain``.

    A query and a key of gain g each give scores of standard deviation g * g after the usual 1 / sqrt(head size): 2 is
    peaked (softmax far from uniform), 1 hardly.
    """
    return Draw((out, inner), gain / math.sqrt(inner))


def scale(size: int, mean: float = 1.0, spread: float = 0.2) -> Draw:
    """A norm's weight; one that is forgotten or taken from another layer shows. Queries and keys with norms of their
    own have their peaks from here: ``mean`` 1.6 on both sides is what gain 1.6 is without."""
    return Draw((size,), mean * spread, mean)


def shift(size: int, std: float = 0.2) -> Draw:
    """A bias that is not zero."""
    return Draw((size,), std)


def draw(plan: Plan, name: str, seed: int) -> torch.Tensor:
    """The float32 tensor of one name, the same whatever else is drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # it takes 32 bits, no more
    recipe = plan[name]
    return torch.randn(recipe.shape, generator=generator).mul_(recipe.std).add_(recipe.mean)


def header_of(plan: Plan, dtype: torch.dtype, *, prefix: str = "", metadata: bool = True) -> bytes:
    """What stands before the tensors in a safetensors file of the plan, its length included."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    offset = 0
    for name, recipe in sorted(plan.items()):
        end = offset + math.prod(recipe.shape) * dtype.itemsize
        header[prefix + name] = {"dtype": NAMES[dtype], "shape": recipe.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def bytes_of(plan: Plan, dtype: torch.dtype) -> int:
    """The bytes of the plan's tensors."""
    return sum(math.prod(recipe.shape) for recipe in plan.values()) * dtype.itemsize


def write_weights(
    path: Path, plan: Plan, seed: int, dtype: torch.dtype, *, prefix: str = "", metadata: bool = True
) -> None:
    """One safetensors file of the plan.

    ``prefix`` goes before every name without changing the numbers. ``metadata`` is the ``{"format": "pt"}`` that
    transformers writes; without it the header has no such entry at all.
    """
    with path.open("wb") as file:
        file.write(header_of(plan, dtype, prefix=prefix, metadata=metadata))
        for name in sorted(plan):
            tensor = draw(plan, name, seed).to(dtype)
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def write_shards(folder: Path, plan: Plan, seed: int, dtype: torch.dtype, *, shards: int, prefix: str = "") -> None:
    """The plan in several files with ``model.safetensors.index.json``, as large checkpoints are published."""
    names, total = sorted(plan), 0
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: plan[name] for name in names[number::shards]}
        write_weights(folder / file, part, seed, dtype, prefix=prefix)
        total += bytes_of(part, dtype)
        weight_map |= dict.fromkeys((prefix + name for name in part), file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def edit_weights(path: Path, edit: Callable[[Tensors], object]) -> None:
    """For mutants: the tensors of one file changed in place."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_checkpoint(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """For mutants: the tensors of a folder's model files, together; each goes back to its own file."""
    files = {path: load_file(path) for path in sorted(folder.glob("model*.safetensors"))}
    together = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    edit(together)
    for path, tensors in files.items():
        save_file({name: together[name] for name in tensors}, path, {"format": "pt"})
