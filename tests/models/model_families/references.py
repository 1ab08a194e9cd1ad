"""What several references share: reading a folder's settings and pooling as sentence-transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from model_families.module_files import MODES


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def prompts_of(folder: Path) -> dict[str, str]:
    """The checkpoint's own prompts; empty where it has none."""
    path = folder / "config_sentence_transformers.json"
    found: dict[str, str] = read_json(path)["prompts"] if path.exists() else {}
    return found


def flagged_mode(folder: Path) -> str:
    """The one of ``MODES`` that 1_Pooling switches on."""
    flags = read_json(folder / "1_Pooling" / "config.json")
    (mode,) = (name for name in MODES if flags[f"pooling_mode_{name}"])
    return mode


def pooled(states: torch.Tensor, mode: str) -> torch.Tensor:
    """One vector of a text's token states [T, H]."""
    if mode == "mean_tokens":
        return states.mean(0)
    return states[{"cls_token": 0, "lasttoken": -1}[mode]]
