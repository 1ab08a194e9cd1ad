"""Writes an adapter as the folder the server loads: PEFT's two files, the task, the prompts, ranges and a card."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from embedmux.training.backbone import public_name
from embedmux.training.lora import trainable
from embedmux.training.train import TrainedAdapter

WEIGHTS = "adapter_model.safetensors"


def round_weights(trained: TrainedAdapter) -> None:
    """Round the adapter's weights to what float16 can hold, in place, so that the folder gives these very vectors."""
    with torch.no_grad():
        for weight in trainable(trained.adapter):
            weight.copy_(weight.half())


def write_adapter(trained: TrainedAdapter, folder: Path) -> None:
    """Write adapter_config.json, adapter_model.safetensors (float16), task.json and the prompts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # PEFT also writes a card of its own; it is left behind with the temporary folder.
    with tempfile.TemporaryDirectory() as scratch:
        trained.adapter.save_pretrained(scratch)
        config = json.loads((Path(scratch) / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(scratch) / WEIGHTS)
    config["base_model_name_or_path"] = public_name(trained.config.model)
    config["target_modules"] = sorted(config["target_modules"])
    half = {name: tensor.half().contiguous() for name, tensor in sorted(tensors.items())}
    # Written by hand: save_file would make it readable for this user only, and a server often is another one.
    (folder / WEIGHTS).write_bytes(save(half, metadata={"format": "pt"}))
    _write_json(folder / "adapter_config.json", config)
    _write_json(folder / "task.json", {"task": trained.config.task})
    _write_json(folder / "config_sentence_transformers.json", {"prompts": trained.config.prompts})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
