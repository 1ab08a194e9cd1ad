"""The task adapters of Jina embeddings v3 become ordinary ones, from either layout in which they are published.

Stacked: beside each weight its updates for all tasks, as torch's parametrizations name them. Linears have
``<name>.parametrizations.weight.0.lora_A`` [tasks, rank, in] and ``lora_B`` [tasks, out, rank], embeddings A
[tasks, rows, rank] and B [tasks, rank, width]. Split, for transformers 5: a folder for each task, ``retrieval_query``
for retrieval.query, with PEFT's names and with query, key and value apart, which share their A.

Either way y += alpha / rank · B(A x). The update of the one token type is a constant and becomes one more rank of the
words' update, whose A is 1 for every word. The pooler's updates are read and left aside, like the pooler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from embedmux.server.adapters.files import reject, shown
from embedmux.server.adapters.task import NAME
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.encoders import task_folder
from embedmux.server.checkpoint.folder import Config, ModelFolder
from embedmux.server.packed import FusedLinear
from embedmux.server.records import Adapter, LowRank

UPDATE = ".parametrizations.weight.0"
TYPES, POOLER = "embeddings.token_type_embeddings", "pooler.dense"
PREFIXES = ("base_model.model.roberta.", "base_model.model.", "roberta.")
Factors = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank] of one matrix
Find = Callable[[str, int, int], Factors]  # name, in and out of a matrix -> its factors


def read_stacked(checkpoint: Checkpoint, folder: ModelFolder, linears: Iterable[FusedLinear]) -> list[Adapter]:
    """The adapters that config.json lists under lora_adaptations, in its order; none where it lists none.

    ``checkpoint`` is the model's, from which stacked updates are taken. Factors are float32 on the CPU. Raises
    ModelRejected or AdapterRejected for what is missing, left over or of another shape.
    """
    config = folder.config()
    names = config.strings("lora_adaptations", ())
    if not names:
        return []
    linears = tuple(linears)
    folders = [folder.path / task_folder(name) for name in names]
    if not any(path.is_dir() for path in folders):
        stacks = _Stacks(checkpoint, len(names), config)
        finders: list[Find] = [stacks.task(place) for place in range(len(names))]
        return [_adapter(name, config, linears, find) for name, find in zip(names, finders, strict=True)]
    found = []
    for name, path in zip(names, folders, strict=True):
        split = _Split(path, name, config)
        found.append(_adapter(name, config, linears, split.find))
        split.finish()
    return found


def _adapter(name: str, config: Config, linears: tuple[FusedLinear, ...], find: Find) -> Adapter:
    owner = f"adapter {shown(name)}"
    if not NAME.fullmatch(name):
        reject(owner, "config.json: lora_adaptations; a name is letters, digits, '.', '_' or '-'")
    scale = config.number("lora_alpha") / config.integer("lora_rank")
    targets: dict[str, LowRank] = {}
    for linear in linears:
        for target, (in_features, width) in linear.targets.items():
            a, b = find(target, in_features, width)
            if linear.is_lookup:
                type_a, type_b = find(TYPES, config.integer("type_vocab_size", 1), width)
                a = torch.cat([a, torch.ones(1, in_features)])
                b = torch.cat([b, type_b @ type_a[:, :1]], dim=1)
            if not bool(a.isfinite().all() & (b * scale).isfinite().all()):
                reject(owner, f"module {target!r} has NaN or infinity in its factors; copy the model again")
            targets[target] = LowRank(a.contiguous(), b.contiguous(), scale)
    hidden = config.integer("hidden_size")
    find(POOLER, hidden, hidden)
    instructions = config.section("task_instructions").values
    return Adapter(
        id=name,
        digest=_digest(targets),
        path=name,
        task=name,
        prompts={name: str(instructions[name])} if name in instructions else {},
        targets=targets,
        calibrations={},
        max_rank=max(len(update.a) for update in targets.values()),
        num_bytes=sum(4 * (update.a.numel() + update.b.numel()) for update in targets.values()),
    )


class _Stacks:
    """Updates of all tasks, taken from the model's file once and handed out task by task."""

    def __init__(self, checkpoint: Checkpoint, num_tasks: int, config: Config) -> None:
        self._checkpoint, self._num_tasks, self._rank = checkpoint, num_tasks, config.integer("lora_rank")
        self._taken: dict[str, Factors] = {}

    def task(self, place: int) -> Find:
        """The updates of one task."""

        def find(name: str, in_features: int, width: int) -> Factors:
            if name not in self._taken:
                self._taken[name] = self._take(name, in_features, width)
            a, b = (stack[place] for stack in self._taken[name])
            return (a.T, b.T) if name.startswith("embeddings.") else (a, b)

        return find

    def _take(self, name: str, in_features: int, width: int) -> Factors:
        tasks, rank = self._num_tasks, self._rank
        first, second = (tasks, rank, in_features), (tasks, width, rank)
        if name.startswith("embeddings."):
            first, second = (tasks, in_features, rank), (tasks, rank, width)
        a = self._checkpoint.take(f"{name}{UPDATE}.lora_A", first).cpu()
        return a, self._checkpoint.take(f"{name}{UPDATE}.lora_B", second).cpu()


class _Split:
    """One task's folder."""

    def __init__(self, path: Path, task: str, config: Config) -> None:
        self._owner, self._rank = f"adapter {shown(task)}", config.integer("lora_rank")
        settings = ModelFolder(path).config("adapter_config.json")
        for key, wanted in {"r": self._rank, "lora_alpha": config.number("lora_alpha")}.items():
            if settings.number(key) != wanted:
                reject(self._owner, f"{key} is {settings.get(key)!r}, config.json of the model says {wanted!r}")
        for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
            if settings.get(key):
                reject(self._owner, f"{key} is {shown(settings.get(key))}, which no published task adapter has")
        self._file = Checkpoint(path, prefixes=PREFIXES, device=torch.device("cpu"), file="adapter_model.safetensors")

    def find(self, name: str, in_features: int, width: int) -> Factors:
        """The factors of a matrix of the backbone."""
        if name.startswith("embeddings."):
            return self._take(f"{name}.lora_embedding_A", f"{name}.lora_embedding_B", in_features, width)
        if not name.endswith("mixer.Wqkv"):
            return self._take(f"{name}.lora_A.weight", f"{name}.lora_B.weight", in_features, width)
        names, rows = [name.replace("mixer.Wqkv", f"self_attn.{part}_proj") for part in "qkv"], width // 3
        parts = [self._take(f"{each}.lora_A.weight", f"{each}.lora_B.weight", in_features, rows) for each in names]
        if any(not torch.equal(a, parts[0][0]) for a, _ in parts[1:]):
            reject(self._owner, f"{names[0]!r} and its neighbours have different factors A, the model has one for them")
        return parts[0][0], torch.cat([b for _, b in parts])

    def finish(self) -> None:
        """Refuses what belongs to no matrix."""
        self._file.finish(lambda _: False)

    def _take(self, first: str, second: str, in_features: int, width: int) -> Factors:
        return self._file.take(first, (self._rank, in_features)), self._file.take(second, (width, self._rank))


def _digest(targets: dict[str, LowRank]) -> str:
    """sha256 over what determines vectors; the same for both layouts."""
    digest = hashlib.sha256()
    for name, update in sorted(targets.items()):
        digest.update(f"{name} {tuple(update.a.shape)} {tuple(update.b.shape)} {update.scale!r}\n".encode())
        for factor in (update.a, update.b):
            digest.update(factor.numpy().tobytes())
    return digest.hexdigest()
