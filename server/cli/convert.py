"""``embedmux convert``: pickled weights of a local model -> safetensors beside them, once and offline."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from embedmux.server.checkpoint.encoders import COLBERT, SPARSE
from embedmux.server.cli import console
from embedmux.server.errors import InvalidRequest, ModelRejected

HEADS = {f"{name}.pt": f"{name}.safetensors" for name in (COLBERT, SPARSE)}
WEIGHTS, CONVERTED = "pytorch_model.bin", "model.safetensors"


def convert(folder: Path) -> None:
    """Convert a local model's pickled weights to safetensors, which is all that the server reads.

    Made for BGE-M3, whose heads for sparse weights and token vectors are published as pickles alone; pytorch_model.bin,
    in the folder and in those of its Dense modules, is converted too. Pickles are read by torch's loader for weights,
    which runs no code of theirs; files that are there already are left alone.

    Examples:

        embedmux convert /models/bge-m3

    Parameters
    ----------
    folder
        The model's directory.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{str(folder)!r} is no folder")
    found = list(pickles(folder))
    if not found:
        wanted = ", ".join((*HEADS, WEIGHTS))
        raise InvalidRequest(f"{str(folder)!r} holds none of {wanted}; copy them there from where the model comes from")
    screen = console.output()
    for source, target in found:
        name = target.relative_to(folder)
        if target.exists():
            screen.print(f"{name} is there already, {source.name} is left as it is", soft_wrap=True)
            continue
        tensors = read_pickle(source)
        write(target, tensors)
        screen.print(f"{name}: {len(tensors)} tensors from {source.name}", soft_wrap=True)


def pickles(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(pickle, safetensors file to make of it) of a model's folder."""
    for name, converted in HEADS.items():
        if (folder / name).exists():
            yield folder / name, folder / converted
    for path in sorted((folder / WEIGHTS, *folder.glob(f"*_Dense/{WEIGHTS}"))):
        if path.exists():
            yield path, path.parent / CONVERTED


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a pickle; raises ModelRejected for one that holds, or would do, anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelRejected(f"{path}: not read as plain weights: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ModelRejected(f"{path}: holds {type(found).__name__}, not named tensors")
    return {str(name): tensor for name, tensor in found.items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, there wholly or not at all. Tensors that share memory are stored once each."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, unfinished, {"format": "pt"})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
