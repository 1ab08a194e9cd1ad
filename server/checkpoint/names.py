"""What a model folder is called: hints for families whose directories look alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embedmux.server.checkpoint.folder import Config, ModelFolder

MAX_CARD_BYTES = 1 << 21
CARD_NAME = re.compile(r"^model-index:\s*\n\s*-\s*name:\s*['\"]?([^'\"\n]+)", re.MULTILINE)
CARD_TITLE = re.compile(r"^#{1,2}\s+(.+?)\s*#*$", re.MULTILINE)
CARD_BASE = re.compile(r"^base_model:\s*(?:\n\s*-\s*)?['\"]?([^'\"\n]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Hint:
    """A name, and where it was found. A base model's name says what it was made of, not what it is."""

    source: str
    name: str
    is_base: bool = False


def read_hints(folder: ModelFolder, config: Config) -> tuple[Hint, ...]:
    """The names of a model, the most telling first."""
    found = [Hint("the hub's name" if folder.hub_name else "the directory's name", folder.name)]
    front, body = _card(folder)
    if match := CARD_NAME.search(front):
        found.append(Hint("the model card", match[1]))
    if match := CARD_TITLE.search(body):
        found.append(Hint("the model card's title", match[1]))
    if name := config.get("_name_or_path"):
        found.append(Hint("config.json: _name_or_path", str(name)))
    if match := CARD_BASE.search(front):
        found.append(Hint("the model card's base_model", match[1], is_base=True))
    return tuple(found)


def find_hint(hints: tuple[Hint, ...], pattern: str, *, with_base: bool = False) -> Hint | None:
    """The first hint whose name ends with the pattern, after its start or a mark such as / or _; case is nothing."""
    whole = re.compile(rf"(?:.*[^a-z0-9.])?(?:{pattern})", re.DOTALL)
    for hint in hints:
        if (with_base or not hint.is_base) and whole.fullmatch(hint.name.strip().rstrip("/\\").lower()):
            return hint
    return None


def _card(folder: ModelFolder) -> tuple[str, str]:
    """The front matter and the text of README.md; empty where there is none or it is no text."""
    path = folder.path / "README.md"
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            return "", ""
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "", ""
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return "", text
    end = text.index("\n---", 4)
    return text[4:end], text[end + 4 :]
