"""The JSON of a model folder, read strictly: every refusal names the folder, the file and the key."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from embedmux.server.errors import ModelRejected

MAX_JSON_BYTES = 1 << 23  # tokenizer_config.json of the largest vocabularies has over a megabyte
MAX_TOKENIZER_BYTES = 1 << 27  # of tokenizer.json; the largest published ones have some 35 MB
MISSING: Any = object()
HUB_CACHE = re.compile(r"models--[\w.-]+?--([\w.-]+)")  # a repository's folder there


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's directory. Only JSON is read here, and only inside the folder."""

    path: Path

    @property
    def name(self) -> str:
        """What messages call it: the name on the hub where it lies in the hub's cache, else the directory's own."""
        return self.hub_name or self.path.name

    @property
    def hub_name(self) -> str | None:
        """The repository's name, without its owner, of a snapshot in the hub's cache."""
        is_snapshot = self.path.parent.name == "snapshots"
        match = HUB_CACHE.fullmatch(self.path.parent.parent.name) if is_snapshot else None
        return match[1] if match else None

    def has(self, name: str) -> bool:
        """Whether the file or folder is there; ``name`` may lead into sub-folders."""
        return (self.path / name).exists()

    def config(self, name: str = "config.json", *, optional: bool = False) -> Config:
        """A JSON object of the folder; an empty one where it may be absent and is."""
        return Config(self, name, self._read(name, dict, optional=optional))

    def tokenizer(self) -> Config:
        """tokenizer.json as JSON, for the ids of single tokens; texts are tokenised by its own library."""
        return Config(self, "tokenizer.json", self._read("tokenizer.json", dict, optional=False))

    def array(self, name: str, *, optional: bool = False) -> list[Any]:
        """A JSON array of the folder; [] where it may be absent and is."""
        found: list[Any] = self._read(name, list, optional=optional)
        return found

    def reject(self, what: str) -> NoReturn:
        """Refuses the model; ``what`` names the file, the value and the next step."""
        raise ModelRejected(f"model {self.name!r}: {what}")

    def _read(self, name: str, kind: type, *, optional: bool) -> Any:
        path = self.path / name
        if not path.exists():
            if optional:
                return kind()
            self.reject(f"{name} is missing")
        try:
            limit = MAX_TOKENIZER_BYTES if name == "tokenizer.json" else MAX_JSON_BYTES
            if path.stat().st_size > limit:
                self.reject(f"{name} has {path.stat().st_size} bytes, the limit for it is {limit}")
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelRejected(f"model {self.name!r}: cannot read {name}: {error}") from error
        if not isinstance(found, kind):
            self.reject(f"{name} holds {type(found).__name__}, not {'an object' if kind is dict else 'an array'}")
        return found


@dataclass(frozen=True, slots=True)
class Config:
    """One JSON object with typed access. A value of another type is refused, never converted."""

    folder: ModelFolder
    file: str
    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value; ``default`` where the key is absent or null."""
        found = self.values.get(key)
        return default if found is None else found

    def integer(self, key: str, default: Any = MISSING, *, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        found = self._value(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            self.reject(key, f"a whole number of at least {least}")
        return int(found)

    def number(self, key: str, default: Any = MISSING) -> float:
        """A finite number above 0."""
        found = self._value(key, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
            self.reject(key, "a number above 0")
        return float(found)

    def flag(self, key: str, default: Any = MISSING) -> bool:
        """true or false."""
        found = self._value(key, default)
        if not isinstance(found, bool):
            self.reject(key, "true or false")
        return bool(found)

    def string(self, key: str, default: Any = MISSING) -> str:
        """A string."""
        found = self._value(key, default)
        if not isinstance(found, str):
            self.reject(key, "a string")
        return str(found)

    def strings(self, key: str, default: Any = MISSING) -> tuple[str, ...]:
        """A list of strings."""
        found = self._value(key, default)
        if not isinstance(found, list | tuple) or not all(isinstance(item, str) for item in found):
            self.reject(key, "a list of strings")
        return tuple(found)

    def section(self, key: str) -> Config:
        """An object inside this one; an empty one where it is absent."""
        found = self.get(key, {})
        if not isinstance(found, dict):
            self.reject(key, "an object")
        return Config(self.folder, f"{self.file}: {key}", found)

    def require(self, key: str, *wanted: Any) -> None:
        """Refuses a value that is there and none of ``wanted``: this version would compute something else."""
        if self.values.get(key) is not None and self.values[key] not in wanted:
            self.reject(key, f"{' or '.join(repr(value) for value in wanted)}, which is all this version computes")

    def reject(self, key: str, wanted: str) -> NoReturn:
        """Refuses the value of a key."""
        self.folder.reject(f"{self.file}: {key} is {self.values.get(key)!r}; it must be {wanted}")

    def _value(self, key: str, default: Any) -> Any:
        found = self.get(key, default)
        if found is MISSING:
            self.folder.reject(f"{self.file} has no {key}")
        return found
