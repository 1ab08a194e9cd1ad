"""Adapter folders that must be refused, as code: a good one with one defect each.

A plain module: load it by its path. ``HOSTILE`` holds (name, build, word): ``build(folder)`` fills an existing empty
folder, and the refusal must name the folder and contain ``word``. ``build(folder, linears)`` aims at another model.
"""

from __future__ import annotations

import json
import os
import runpy
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

Linears = Mapping[str, tuple[int, int]]

CONFIGS = runpy.run_path(str(Path(__file__).with_name("configs.py")))
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# The linears of a two-layer BERT of width 32: (in_features, out_features).
LINEARS: dict[str, tuple[int, int]] = {
    f"encoder.layer.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "attention.self.query": (32, 32),
        "attention.self.key": (32, 32),
        "attention.self.value": (32, 32),
        "attention.output.dense": (32, 32),
        "intermediate.dense": (32, 48),
        "output.dense": (48, 32),
    }.items()
}


class Draft:
    """A good adapter that updates the first two linears; a defect changes it before or after it is written."""

    def __init__(self, folder: Path, linears: Linears = LINEARS) -> None:
        self.folder = folder
        self.modules = sorted(linears)[:2]
        generator = torch.Generator().manual_seed(7)
        self.config: dict[str, object] = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "bias": "none",
            "target_modules": list(self.modules),
        }
        self.tensors: dict[str, torch.Tensor] = {}
        for module in self.modules:
            in_features, out_features = linears[module]
            self.tensors[self.a(module)] = torch.randn(4, in_features, generator=generator)
            self.tensors[self.b(module)] = torch.randn(out_features, 4, generator=generator)

    @staticmethod
    def a(module: str) -> str:
        return f"base_model.model.{module}.lora_A.weight"

    @staticmethod
    def b(module: str) -> str:
        return f"base_model.model.{module}.lora_B.weight"

    def write(self) -> None:
        (self.folder / CONFIG).write_text(json.dumps(self.config))
        safetensors.torch.save_file(self.tensors, self.folder / WEIGHTS)


class Hostile(NamedTuple):
    """One broken adapter; ``word`` is the guilty thing that the refusal names."""

    name: str
    build: Callable[..., None]
    word: str


def write_good(folder: Path, linears: Linears = LINEARS) -> None:
    """The adapter every defect below starts from."""
    Draft(folder, linears).write()


def before(change: Callable[[Draft], object]) -> Callable[..., None]:
    """A build function that changes config or tensors, then writes them."""

    def build(folder: Path, linears: Linears = LINEARS) -> None:
        draft = Draft(folder, linears)
        change(draft)
        draft.write()

    return build


def after(change: Callable[[Draft], object]) -> Callable[..., None]:
    """A build function that writes a good adapter, then damages its files."""

    def build(folder: Path, linears: Linears = LINEARS) -> None:
        draft = Draft(folder, linears)
        draft.write()
        change(draft)

    return build


def config(**changes: object) -> Callable[..., None]:
    """A build function that overrides config keys."""
    return before(lambda draft: draft.config.update(changes))


def raw_config(content: bytes) -> Callable[..., None]:
    """A build function that replaces adapter_config.json."""
    return after(lambda draft: (draft.folder / CONFIG).write_bytes(content))


def beside(name: str, content: bytes) -> Callable[..., None]:
    """A build function that adds a file beside a good adapter."""
    return after(lambda draft: (draft.folder / name).write_bytes(content))


def raw_weights(change: Callable[[bytes], bytes]) -> Callable[..., None]:
    """A build function that damages the bytes of the weights."""

    def damage(draft: Draft) -> None:
        path = draft.folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return after(damage)


def header(content: bytes, data: bytes = b"") -> Callable[..., None]:
    """A build function whose weights have this header, true to its length."""
    return raw_weights(lambda _: struct.pack("<Q", len(content)) + content + data)


def calibration(tensors: dict[str, torch.Tensor]) -> Callable[..., None]:
    """A build function that adds calibration.safetensors."""
    return after(lambda draft: safetensors.torch.save_file(tensors, draft.folder / "calibration.safetensors"))


def tensor(name: str) -> Callable[..., None]:
    """A build function that adds a tensor which belongs to no linear."""

    def add(draft: Draft) -> None:
        draft.tensors[name.format(module=draft.modules[0])] = torch.zeros(4)

    return before(add)


def first(letter: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., None]:
    """A build function that replaces factor A or B of the first module, or drops it."""

    def replace(draft: Draft) -> None:
        name = getattr(draft, letter.lower())(draft.modules[0])
        changed = change(draft.tensors.pop(name))
        if changed is not None:
            draft.tensors[name] = changed.contiguous()

    return before(replace)


def with_value(factor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one value replaced."""
    changed = factor.clone()
    changed.flatten()[3] = value
    return changed


def _rename(draft: Draft) -> None:
    module = draft.modules[1]
    for name in (draft.a(module), draft.b(module)):
        draft.tensors[name.replace("base_model.model.", "base_model.model.bert.")] = draft.tensors.pop(name)


def _other_tower(draft: Draft) -> None:
    draft.tensors = {name.replace("model.model.", "model.model.vision."): t for name, t in draft.tensors.items()}


def _drop_module(draft: Draft) -> None:
    for name in (draft.a(draft.modules[1]), draft.b(draft.modules[1])):
        del draft.tensors[name]


def _pickle_only(draft: Draft) -> None:
    (draft.folder / WEIGHTS).rename(draft.folder / "adapter_model.bin")


def _weights_pipe(draft: Draft) -> None:
    (draft.folder / WEIGHTS).unlink()
    os.mkfifo(draft.folder / WEIGHTS)


def _dangling_link(draft: Draft) -> None:
    (draft.folder / WEIGHTS).unlink()
    (draft.folder / WEIGHTS).symlink_to(draft.folder / "nowhere")


def _config_folder(draft: Draft) -> None:
    (draft.folder / CONFIG).unlink()
    (draft.folder / CONFIG).mkdir()


def _link_loop(draft: Draft) -> None:
    (draft.folder / CONFIG).unlink()
    (draft.folder / CONFIG).symlink_to(draft.folder / CONFIG)


def _empty(draft: Draft) -> None:
    draft.tensors = {}


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"0" + b"}" * depth


HOSTILE = [
    *(Hostile(name, config(**change), word) for name, change, word in CONFIGS["REFUSED"]),
    Hostile("config_missing", after(lambda draft: (draft.folder / CONFIG).unlink()), CONFIG),
    Hostile("config_is_a_folder", after(_config_folder), CONFIG),
    Hostile("config_links_to_itself", after(_link_loop), CONFIG),
    Hostile("config_huge", raw_config(b" " * (1 << 20) + b"{}"), "1048576"),
    Hostile("config_empty", raw_config(b""), "JSON"),
    Hostile("config_broken", raw_config(b'{"r": 4,'), "JSON"),
    Hostile("config_list", raw_config(b"[]"), "list"),
    Hostile("config_not_utf8", raw_config(b'{"r": "\xff"}'), "UTF-8"),
    Hostile("config_duplicate_key", raw_config(b'{"peft_type": "LORA", "r": 4, "r": 8}'), "'r'"),
    Hostile("config_nested", raw_config(_nested(100_000)), "nested"),
    Hostile("config_long_number", raw_config(b'{"r": ' + b"9" * 10_000 + b"}"), "JSON"),
    Hostile("weights_missing", after(lambda draft: (draft.folder / WEIGHTS).unlink()), WEIGHTS),
    Hostile("weights_pickled", after(_pickle_only), "pickle"),
    Hostile("weights_pipe", after(_weights_pipe), "regular file"),
    Hostile("weights_link_to_nowhere", after(_dangling_link), WEIGHTS),
    Hostile("weights_empty_file", raw_weights(lambda raw: b""), "0 bytes"),
    Hostile("weights_empty", before(_empty), "no tensors"),
    Hostile("weights_truncated", raw_weights(lambda raw: raw[:-1]), "bytes"),
    Hostile("weights_truncated_header", raw_weights(lambda raw: raw[:20]), "truncated"),
    Hostile("weights_with_a_tail", raw_weights(lambda raw: raw + b"tail"), "bytes"),
    Hostile("weights_header_huge", raw_weights(lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]), str(1 << 60)),
    Hostile("weights_header_short", raw_weights(lambda raw: struct.pack("<Q", 9) + raw[8:]), "header"),
    Hostile("weights_header_not_utf8", header(b'{"\xff": {"dtype": "F32"}}'), "UTF-8"),
    Hostile("weights_header_duplicate", header(b'{"a": {}, "a": {}}'), "'a'"),
    Hostile("weights_header_number", header(b'{"a": 3}'), "header entry"),
    Hostile("weights_shape_negative", header(b'{"a": {"dtype": "F32", "shape": [-1, -1]}}'), "[-1, -1]"),
    Hostile("weights_shape_endless", header(b'{"a": {"dtype": "F32", "shape": [' + b"9," * 99 + b"9]}}"), "lengths"),
    Hostile("tensor_int8", first("A", lambda a: a.to(torch.int8)), "I8"),
    Hostile("tensor_bool", first("B", lambda b: b > 0), "BOOL"),
    Hostile("tensor_float8", first("A", lambda a: a.to(torch.float8_e4m3fn)), "F8_E4M3"),
    Hostile("tensor_nan", first("A", lambda a: with_value(a, float("nan"))), "NaN"),
    Hostile("tensor_infinite", first("B", lambda b: with_value(b, float("-inf"))), "infinity"),
    Hostile("tensor_beyond_float32", first("B", lambda b: with_value(b.double(), 1e300)), "infinity"),
    Hostile("factor_a_missing", first("A", lambda a: None), "no factor A"),
    Hostile("factor_b_missing", first("B", lambda b: None), "no factor B"),
    Hostile("factor_a_transposed", first("A", lambda a: a.T), "shape"),
    Hostile("factor_b_too_wide", first("B", lambda b: torch.cat([b, b])), "shape"),
    Hostile("factor_a_flat", first("A", lambda a: a.flatten()), "shape"),
    Hostile("factor_rank_zero", first("A", lambda a: a[:0]), "shape"),
    Hostile("module_missing", before(_drop_module), "no factors"),
    Hostile("module_foreign", tensor("base_model.model.classifier.lora_A.weight"), "classifier"),
    Hostile("module_of_another_tower", before(_other_tower), "vision"),
    Hostile("module_prefixes_mixed", before(_rename), "prefix"),
    Hostile("tensor_magnitude", tensor("base_model.model.{module}.lora_magnitude_vector"), "DoRA"),
    Hostile("tensor_bias", tensor("base_model.model.{module}.lora_B.bias"), "bias"),
    Hostile("tensor_embedding", tensor("base_model.model.embeddings.word_embeddings.lora_embedding_A"), "embedding"),
    Hostile("tensor_base_weight", tensor("base_model.model.{module}.base_layer.weight"), "base model"),
    Hostile("tensor_named_adapter", tensor("base_model.model.{module}.lora_A.default.weight"), "default"),
    Hostile("task_unknown_key", beside("task.json", b'{"task": "retrieval", "role": "query"}'), "role"),
    Hostile("task_number", beside("task.json", b'{"task": 3}'), "task"),
    Hostile("task_missing", beside("task.json", b"{}"), "task"),
    Hostile("prompts_list", beside("config_sentence_transformers.json", b'{"prompts": ["a"]}'), "prompts"),
    Hostile("prompt_number", beside("config_sentence_transformers.json", b'{"prompts": {"query": 3}}'), "query"),
    Hostile("prompt_surrogate", beside("config_sentence_transformers.json", b'{"prompts": {"q": "\\ud800"}}'), "UTF-8"),
    Hostile("calibration_name", calibration({"wide": torch.zeros(2, 8)}), "wide"),
    Hostile("calibration_shape", calibration({"8": torch.zeros(2, 9)}), "[2, 9]"),
    Hostile("calibration_dtype", calibration({"8": torch.zeros(2, 8, dtype=torch.float16)}), "float16"),
    Hostile("calibration_nan", calibration({"8": torch.full((2, 8), float("nan"))}), "NaN"),
    Hostile("calibration_reversed", calibration({"8": torch.tensor([[1.0] * 8, [0.0] * 8])}), "minimum"),
    Hostile("calibration_truncated", beside("calibration.safetensors", b"\x00"), "calibration.safetensors"),
]
