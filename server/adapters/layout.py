"""Which tensors of a PEFT file update which linears: every tensor has its place, every place its tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from embedmux.server.adapters.files import reject, shown
from embedmux.server.adapters.peft_config import PeftConfig
from embedmux.server.adapters.tensors import Shapes

PEFT_WRAPPER = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_[AB]\.weight")
# What may stand before a backbone's own module names: PEFT's wrapper, sentence-transformers' first module, and the
# attribute under which a transformers model with a head keeps its backbone. Any other prefix could be another tower.
PREFIX = re.compile(r"(base_model\.model\.)?((0\.)?auto_model\.|0\.model\.)?((bert|roberta|distilbert|new|model)\.)?")
FOREIGN = {
    "lora_magnitude_vector": "DoRA magnitudes are not served",
    "lora_embedding_": "LoRA on embeddings is not served",
    "modules_to_save": "replaced modules are not served",
    "trainable_tokens": "replaced token embeddings are not served",
    ".base_layer.": "it is a weight of the base model",
    ".bias": "biases are not served",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The prefix before every target name in the file, and the targets the adapter updates, sorted."""

    prefix: str
    targets: tuple[str, ...]

    def module(self, target: str) -> str:
        """The module name that PEFT matches its patterns against."""
        return self.prefix.removeprefix(PEFT_WRAPPER) + target

    def factor(self, target: str, letter: str) -> str:
        """The tensor that holds factor A or B of a target."""
        return f"{self.prefix}{target}.lora_{letter}.weight"


def lay_out(shapes: Shapes, config: PeftConfig, linears: Mapping[str, tuple[int, int]], owner: str) -> Layout:
    """The layout of a file with these tensors; refuses missing, foreign and ambiguous ones by name."""
    modules = _modules(shapes, owner)
    prefix = _prefix(modules, linears, owner)
    layout = Layout(prefix, tuple(sorted(module.removeprefix(prefix) for module in modules)))
    stored = set(layout.targets)
    for target in sorted(linears):
        is_selected = config.selects(layout.module(target))
        if is_selected and target not in stored:
            reject(owner, f"module {target!r} is selected by target_modules but the file has no factors for it")
        if target in stored and not is_selected:
            reject(owner, f"module {target!r} has factors in the file but the config does not select it")
    for target in layout.targets:
        for letter in "AB":
            if layout.factor(target, letter) not in shapes:
                reject(owner, f"module {target!r} has no factor {letter} ({shown(layout.factor(target, letter))})")
    return layout


def check_shapes(
    shapes: Shapes,
    layout: Layout,
    config: PeftConfig,
    linears: Mapping[str, tuple[int, int]],
    owner: str,
    *,
    max_rank: int,
) -> None:
    """Refuses a rank over the limit and any factor that is not A [rank, in] or B [out, rank]."""
    for target in layout.targets:
        in_features, out_features = linears[target]
        rank = config.rank_of(layout.module(target))
        if rank > max_rank:
            reject(owner, f"module {target!r} has rank {shown(rank)}, the limit is {max_rank} (max_rank)")
        for letter, wanted in (("A", (rank, in_features)), ("B", (out_features, rank))):
            shape = shapes[layout.factor(target, letter)]
            if shape != wanted:
                reject(
                    owner,
                    f"module {target!r} has factor {letter} of shape {list(shape)}, wanted {list(wanted)}; "
                    "was it trained on another model?",
                )


def _modules(shapes: Shapes, owner: str) -> list[str]:
    """Module names in the file, sorted; any tensor but a factor of a linear is refused."""
    modules = set()
    for tensor in shapes:
        match = FACTOR.fullmatch(tensor)
        if match is None or any(part in tensor for part in FOREIGN):
            reason = next((FOREIGN[part] for part in FOREIGN if part in tensor), "it is not a factor of a linear")
            reject(owner, f"tensor {shown(tensor)} has no place in the model: {reason}")
        modules.add(match["module"])
    if not modules:
        reject(owner, "the weights file holds no tensors; an adapter must update at least one linear")
    return sorted(modules)


def _prefix(modules: list[str], linears: Mapping[str, tuple[int, int]], owner: str) -> str:
    """The one prefix that turns every module of the file into a linear of the backbone."""
    shared = _prefixes(modules[0], linears, owner)
    for module in modules[1:]:
        fits = _prefixes(module, linears, owner)
        if not shared & fits:
            reject(
                owner,
                f"modules {shown(modules[0])} and {shown(module)} have different prefixes, {sorted(shared)} and "
                f"{sorted(fits)}; keep the factors of one model",
            )
        shared &= fits
    if len(shared) > 1:
        reject(owner, f"module {shown(modules[0])} fits the backbone with each of the prefixes {sorted(shared)}")
    return shared.pop()


def _prefixes(module: str, linears: Mapping[str, tuple[int, int]], owner: str) -> set[str]:
    places = [0, *(match.end() for match in re.finditer(r"\.", module))]
    found = {module[:place] for place in places if module[place:] in linears and PREFIX.fullmatch(module[:place])}
    if not found:
        reject(owner, f"module {shown(module)} is not a linear of this backbone; train without it (exclude_modules)")
    return found
