"""Small model folders: JSON files alone, as the published repositories lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "max_position_embeddings": 512}
QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "max_position_embeddings": 40960,
}


def transformer(kind: str = "sentence_transformers.models.Transformer") -> dict[str, Any]:
    """The first entry of modules.json."""
    return {"idx": 0, "name": "0", "path": "", "type": kind}


def module(place: int, kind: str, room: str = "sentence_transformers.models") -> dict[str, Any]:
    """An entry of modules.json with a folder of its own."""
    return {"idx": place, "name": str(place), "path": f"{place}_{kind}", "type": f"{room}.{kind}"}


def pooled(mode: str, size: int) -> dict[str, Any]:
    """modules.json and 1_Pooling of a model that pools and normalises, in the old form."""
    flags = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    return {
        "modules.json": [transformer(), module(1, "Pooling"), module(2, "Normalize")],
        "1_Pooling/config.json": {"word_embedding_dimension": size, **flags, "include_prompt": True},
    }


def vocabulary(*tokens: str, **ids: int) -> dict[str, Any]:
    """tokenizer.json with a vocabulary of these tokens."""
    return {"model": {"type": "BPE", "vocab": {**{token: i for i, token in enumerate(tokens)}, **ids}}}


def write(folder: Path, config: dict[str, Any], files: dict[str, Any] | None = None) -> Path:
    """Writes config.json, an empty tokenizer.json and what ``files`` names: text as it is, anything else as JSON."""
    for name, content in {"tokenizer.json": vocabulary(), "config.json": config, **(files or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder
