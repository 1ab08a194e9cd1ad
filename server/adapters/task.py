"""What an adapter says about its use: task.json and the prompts in config_sentence_transformers.json."""

from __future__ import annotations

import re
from pathlib import Path

from embedmux.server.adapters.files import find, read_object, reject, shown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def read_task(folder: Path, owner: str, root: Path | None) -> str | None:
    """The task in ``task.json`` ({"task": "retrieval"}), None without that file."""
    path = find(folder, "task.json", owner, root)
    if path is None:
        return None
    content = read_object(path, owner)
    for key in content:
        if key != "task":
            reject(owner, f"'task.json' has the unknown key {shown(key)}; only 'task' is read")
    task = content.get("task")
    if not isinstance(task, str) or not NAME.fullmatch(task):
        reject(owner, f"'task.json' has the task {shown(task)}; a task is a name such as 'retrieval'")
    return task


def read_prompts(folder: Path, owner: str, root: Path | None) -> dict[str, str]:
    """The literal prefixes by name; empty without the file. Its other keys belong to sentence-transformers."""
    path = find(folder, "config_sentence_transformers.json", owner, root)
    if path is None:
        return {}
    prompts = read_object(path, owner).get("prompts")
    if prompts is None:
        return {}
    if not isinstance(prompts, dict):
        reject(owner, f"'config_sentence_transformers.json' has prompts {shown(prompts)}, not an object")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            reject(owner, f"prompt {shown(name)} is {shown(prompt)}, not a string")
        if not name or not _is_utf8(name) or not _is_utf8(prompt):
            reject(owner, f"prompt {shown(name)} with text {shown(prompt)} is unnamed or cannot be written as UTF-8")
    return prompts


def _is_utf8(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can smuggle in and no tokeniser accepts."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
