"""The doctor's look at one model: why it would be refused, without loading its weights."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedmux.server.checkpoint.read import read
from embedmux.server.cli.finding import Finding
from embedmux.server.contract import Contract
from embedmux.server.errors import EmbedmuxError
from embedmux.server.models import find_model

PICKLED = "pytorch_model.bin"


def examine(model: str) -> Iterator[Finding]:
    """Where it is, what its files say, whether the headers of its weights agree, and whether its adapters fit."""
    try:
        folder = find_model(model)
    except EmbedmuxError as error:
        yield Finding("model", "fault", str(error))
        return
    yield Finding("model", "ok", f"{model} in {folder}")
    try:
        reading = read(folder)
    except EmbedmuxError as error:
        yield Finding("contract", "fault", str(error), "embedmux models lists what is served")
        return
    contract = reading.contract
    shown = f"{contract.family} on backbone {contract.architecture}, by {reading.recognised}"
    yield Finding("contract", "ok", shown, f"embedmux models {model} says more")
    for note in reading.notes:
        yield Finding("note", "note", note)
    yield from _weights(folder)
    yield from _adapters(folder, contract)


def _weights(folder: Path) -> Iterator[Finding]:
    check: Any = importlib.import_module("embedmux.server.check")  # which imports torch
    try:
        num_tensors = check.check(folder)
    except EmbedmuxError as error:
        is_pickled = (folder / PICKLED).exists() and not list(folder.glob("model*.safetensors"))
        fix = f"embedmux convert {folder} makes model.safetensors of {PICKLED}" if is_pickled else ""
        yield Finding("weights", "fault", str(error), fix)
        return
    yield Finding("weights", "ok", f"{num_tensors} tensors in whole files, all in place and of config.json's shapes")


def _adapters(folder: Path, contract: Contract) -> Iterator[Finding]:
    """The adapters that the checkpoint brings along, read exactly as the server reads them."""
    if contract.adapters is None:
        return
    directory: Any = importlib.import_module("embedmux.server.adapters.directory")
    backbones: Any = importlib.import_module("embedmux.server.backbones.targets")
    targets = backbones.model_targets(folder)
    for path in directory.list_adapter_folders(contract.adapters):
        try:
            adapter = directory.read_adapter(path, targets, root=contract.adapters)
        except EmbedmuxError as error:
            yield Finding("adapter", "fault", str(error))
        else:
            yield Finding("adapter", "ok", f"{adapter.id}: rank {adapter.max_rank}, {len(adapter.targets)} linears")
