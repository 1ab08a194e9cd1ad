"""Files of an adapter folder, opened only inside the root and read only when they are small enough."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import NoReturn

from embedmux.server.errors import AdapterRejected

MAX_JSON_BYTES = 1 << 20
MAX_SHOWN = 120


def shown(value: object) -> str:
    """A value as an error message quotes it: one line, printable, at most 120 characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def resolve(path: Path, owner: str, root: Path | None) -> Path:
    """The real place of ``path``, links followed; refused when it lies outside ``root`` or cannot be followed."""
    try:
        real = path.resolve()
        base = None if root is None else root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise AdapterRejected(f"{owner}: path {shown(str(path))} cannot be resolved: {error}") from error
    if base is not None and not real.is_relative_to(base):
        raise AdapterRejected(
            f"{owner}: {path.name!r} resolves to {shown(str(real))}, outside the adapter root {shown(str(base))}; "
            "copy it into the root"
        )
    return real


def find_folder(path: Path, owner: str, root: Path | None) -> Path:
    """The real path of the adapter's folder; anything but a readable folder inside ``root`` is refused."""
    folder = resolve(path, owner, root)
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise AdapterRejected(f"{owner}: {shown(str(path))} is not a readable folder: {error.strerror}") from error
    return folder


def find(folder: Path, name: str, owner: str, root: Path | None) -> Path | None:
    """The real path of ``folder/name``, None when there is no such entry; anything but a regular file is refused.

    The kind is checked before the file is opened, since opening a pipe would wait for a writer for ever.
    """
    path = folder / name
    try:
        if not path.is_symlink() and not path.exists():
            return None
        real = resolve(path, owner, root)
        mode = real.stat().st_mode
    except OSError as error:
        raise AdapterRejected(f"{owner}: {name!r} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise AdapterRejected(f"{owner}: {name!r} is not a regular file")
    return real


def read_object(path: Path, owner: str) -> dict[str, object]:
    """A JSON object of at most 1 MiB without duplicate keys at any depth."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise AdapterRejected(f"{owner}: {path.name!r} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_JSON_BYTES:
        raise AdapterRejected(f"{owner}: {path.name!r} is larger than {MAX_JSON_BYTES} bytes, the limit for JSON files")
    return parse_object(raw, f"{owner}: {path.name!r}")


def parse_object(raw: bytes, owner: str) -> dict[str, object]:
    """JSON bytes as an object; ``owner`` starts the message when they are not one."""

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise AdapterRejected(f"{owner} has the key {shown(twice)} twice in one object; keep one")
        return parsed

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise AdapterRejected(f"{owner} is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise AdapterRejected(f"{owner} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise AdapterRejected(f"{owner} is nested too deeply to be read") from error
    if not isinstance(parsed, dict):
        raise AdapterRejected(f"{owner} is not a JSON object but {type(parsed).__name__}")
    return parsed


def reject(owner: str, what: str) -> NoReturn:
    """Refuse the adapter; ``owner`` names it and ``what`` says module, value, limit and next step."""
    raise AdapterRejected(f"{owner}: {what}")
