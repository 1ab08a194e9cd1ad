"""The small files of a checkpoint: JSON as it is written and edited, and a tokenizer with its settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """For mutants: the object of a JSON file changed in place."""
    values = read_json(path)
    edit(values)
    write_json(path, values)


def write_json(path: Path, values: object) -> None:
    """A JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer: Tokenizer, config: dict[str, object], *names: str) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    ``config`` is the published tokenizer_config without ``added_tokens_decoder``, which is added; ``names`` are its
    keys that name special tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(identity): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
            "single_word": token.single_word, "special": token.special,
        }
        for identity, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **config})
    write_json(folder / "special_tokens_map.json", {name: config[name] for name in names})
