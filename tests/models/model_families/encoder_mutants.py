"""Ways to serve a BERT or XLM-RoBERTa model wrongly, each as an edit of its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model_families.files import edit_json
from model_families.weights import edit_weights

Mutant = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]


def edit_every_weights_file(edit: Callable[[Tensors], None]) -> Mutant:
    """Edits all safetensors that hold an encoder; some repositories have a second copy in a sub-folder."""

    def mutate(folder: Path) -> None:
        for path in sorted(folder.rglob("model.safetensors")):
            if (path.parent / "config.json").exists() and path.parent.name != "1_Dense":
                edit_weights(path, edit)

    return mutate


def edit_every_config(**values: Any) -> Mutant:
    """Sets keys of all config.json that describe an encoder."""

    def mutate(folder: Path) -> None:
        for path in sorted(folder.rglob("config.json")):
            if path.parent.name not in ("1_Dense", "1_Pooling"):
                edit_json(path, lambda config: config.update(values))

    return mutate


def _find(tensors: Tensors, ending: str) -> str:
    """The name with this ending, whatever stands before it."""
    return next(name for name in tensors if name.endswith(ending))


def roll_positions(rows: int) -> Mutant:
    """Every token takes the position that stands ``rows`` before its own: XLM-R without its offset is 2."""

    def edit(tensors: Tensors) -> None:
        name = _find(tensors, "position_embeddings.weight")
        tensors[name] = tensors[name].roll(rows, 0)

    return edit_every_weights_file(edit)


def _swap(one: str, other: str) -> Mutant:
    """Exchanges the tensors of all layers whose names differ in this part only."""

    def edit(tensors: Tensors) -> None:
        pairs = [(name, name.replace(one, other)) for name in tensors if f".{one}." in name]
        for first, second in pairs:
            tensors[first], tensors[second] = tensors[second], tensors[first]

    return edit_every_weights_file(edit)


def _second_type(tensors: Tensors) -> None:
    name = _find(tensors, "token_type_embeddings.weight")
    tensors[name] = tensors[name].roll(1, 0)


def _one_type(tensors: Tensors) -> None:
    name = _find(tensors, "token_type_embeddings.weight")
    tensors[name] = tensors[name][:1].expand_as(tensors[name]).contiguous()


def _no_value_bias(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("self.value.bias"):
            tensors[name] = torch.zeros_like(tensors[name])


def _drop_last_special(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        for template in ("single", "pair"):
            pieces = tokenizer["post_processor"][template]
            pieces.pop()

    edit_json(folder / "tokenizer.json", edit)


def _drop_first_special(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        for template in ("single", "pair"):
            tokenizer["post_processor"][template].pop(0)

    edit_json(folder / "tokenizer.json", edit)


def _pool_otherwise(folder: Path) -> None:
    def edit(flags: dict[str, Any]) -> None:
        for name in ("pooling_mode_cls_token", "pooling_mode_mean_tokens"):
            flags[name] = not flags[name]

    edit_json(folder / "1_Pooling" / "config.json", edit)


def _one_separator(folder: Path) -> None:
    """``<s> query </s> document </s>``: RoBERTa has two separators between the texts."""

    def edit(tokenizer: dict[str, Any]) -> None:
        pair = tokenizer["post_processor"]["pair"]
        middle = next(i for i, piece in enumerate(pair) if piece.get("Sequence", {}).get("id") == "B")
        del pair[middle - 1]

    edit_json(folder / "tokenizer.json", edit)


def zero_tensor(ending: str) -> Mutant:
    """Forgets one tensor of a head."""

    def edit(tensors: Tensors) -> None:
        name = _find(tensors, ending)
        tensors[name] = torch.zeros_like(tensors[name])

    return edit_every_weights_file(edit)


def prompt_edit(name: str, prompt: str) -> Mutant:
    """Another prefix in config_sentence_transformers.json."""
    path = "config_sentence_transformers.json"
    return lambda folder: edit_json(folder / path, lambda values: values["prompts"].update({name: prompt}))


def encoder_mutants(*, kind: str, layers: int, heads: int) -> dict[str, Mutant]:
    """Those that every encoder of the kind ("bert", "xlm-roberta") has."""
    is_bert = kind == "bert"
    return {
        "position offset": roll_positions(1 if is_bert else 2),
        "position offset back": roll_positions(-1),
        "norm eps": edit_every_config(layer_norm_eps=1e-5 if is_bert else 1e-12),
        "num heads": edit_every_config(num_attention_heads=heads // 2),
        "last layer skipped": edit_every_config(num_hidden_layers=layers - 1),
        "activation": edit_every_config(hidden_act="relu"),
        "query and key swapped": _swap("query", "key"),
        "key and value swapped": _swap("key", "value"),
        "norms swapped": _norms_swapped,
        "value bias dropped": edit_every_weights_file(_no_value_bias),
        **({"token type": edit_every_weights_file(_second_type)} if is_bert else {}),
    }


def _norms_swapped(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".attention.output.LayerNorm." in name]:
            other = name.replace(".attention.output.", ".output.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    edit_every_weights_file(edit)(folder)


DENSE_MUTANTS: dict[str, Mutant] = {
    "pooling": _pool_otherwise,
    "dropped eos": _drop_last_special,
    "dropped cls": _drop_first_special,
}
PAIR_MUTANTS: dict[str, Mutant] = {
    "dropped eos": _drop_last_special,
    "classifier bias dropped": zero_tensor("classifier.bias"),
    "pooler bias dropped": zero_tensor("pooler.dense.bias"),
    "document type dropped": edit_every_weights_file(_one_type),
}
ROBERTA_PAIR_MUTANTS: dict[str, Mutant] = {
    "dropped eos": _drop_last_special,
    "one separator": _one_separator,
    "classifier bias dropped": zero_tensor("classifier.out_proj.bias"),
    "classifier dense bias dropped": zero_tensor("classifier.dense.bias"),
}
