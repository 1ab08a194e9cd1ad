"""Texts from the command line: arguments as they stand, or JSONL files line by line. A bad line is kept as an error."""

import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embedmux.client.texts import ROLES, Text
from embedmux.server.cli.console import WrongUsage
from embedmux.server.errors import EmbedmuxError, InvalidRequest

SUFFIXES = (".jsonl", ".jsonl.gz")
STDIN = "-"
OWN_FIELDS = ("task", "role", "adapter", "prompt_name", "prompt", "instruction")


@dataclass(frozen=True, slots=True)
class Line:
    """One input text, or why there is none. ``number`` counts from 1 in its source; blank lines count."""

    source: str
    number: int
    id: str
    text: Text | None
    error: EmbedmuxError | None = None

    @property
    def place(self) -> str:
        """Where it stands, as messages name it."""
        return f"{self.source}:{self.number}"


def check_inputs(arguments: Sequence[str]) -> None:
    """Refuses a misspelt option or a file that would otherwise be embedded by its name."""
    refuse_options(arguments)
    for argument in arguments:
        if not is_file(argument) and os.path.isfile(argument):
            raise WrongUsage(
                f"{argument!r} is a file, but only {' and '.join(SUFFIXES)} files are read; "
                f"write one JSON object with a field `text` a line, or pipe them in with {STDIN!r}"
            )


def refuse_options(arguments: Sequence[str]) -> None:
    """Refuses what was meant as an option, where texts may start with a hyphen for the sake of ``-``."""
    for argument in arguments:
        if argument.startswith("-") and argument != STDIN:
            raise WrongUsage(
                f"no option {argument!r}; a text that starts with a hyphen can be given as a line of input"
            )


def count_lines(arguments: Sequence[str]) -> int | None:
    """How many lines there are to read, blank ones included; None when that cannot be known before reading."""
    if STDIN in arguments:
        return None
    return sum(sum(1 for _ in raw_lines(argument)) if is_file(argument) else 1 for argument in arguments)


def read_lines(arguments: Sequence[str], *, fields: Sequence[str] = ("text",)) -> Iterator[Line]:
    """Every text of ``arguments``, in order; the ``fields`` of a JSON line are joined by a space."""
    for number, argument in enumerate(arguments, start=1):
        if not is_file(argument):
            yield Line("argument", number, str(number), Text(argument))
            continue
        for line_number, raw in enumerate(raw_lines(argument), start=1):
            if raw.strip():
                yield parse_line(raw, source=argument, number=line_number, fields=fields)


def read_plain_lines(arguments: Sequence[str]) -> Iterator[Line]:
    """Every line of stdin and of arguments that are files, each a text as it stands; other arguments are texts."""
    for number, argument in enumerate(arguments, start=1):
        if argument != STDIN and not os.path.isfile(argument):
            yield Line("argument", number, str(number), Text(argument))
            continue
        for line_number, raw in enumerate(raw_lines(argument), start=1):
            if raw.strip():
                yield plain_line(raw, source=argument, number=line_number)


def plain_line(raw: bytes, *, source: str, number: int) -> Line:
    """One line as a text, without its end."""
    place = f"{source}:{number}"
    try:
        return Line(source, number, place, Text(raw.decode().rstrip("\r\n")))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}"
        return Line(source, number, place, None, InvalidRequest(reason))


def is_file(argument: str) -> bool:
    """Whether an argument names a JSONL file (or stdin) rather than being a text itself."""
    return argument == STDIN or argument.endswith(SUFFIXES)


def raw_lines(argument: str) -> Iterator[bytes]:
    """The bytes of each line of a JSONL file, unpacked. Raises OSError, or InvalidRequest for a broken gzip file."""
    if argument == STDIN:
        yield from sys.stdin.buffer
    elif argument.endswith(".gz"):
        try:
            with gzip.open(argument) as file:
                yield from file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidRequest(f"{argument!r} is no whole gzip file: {error}") from error
    else:
        with open(argument, "rb") as file:
            yield from file


def parse_line(raw: bytes, *, source: str, number: int, fields: Sequence[str]) -> Line:
    """One JSON line; what is wrong with it becomes the line's error, since its neighbours may be right."""
    place = f"{source}:{number}"
    try:
        record = json.loads(raw)
    except ValueError as error:  # malformed JSON and bytes that are not UTF-8
        return Line(source, number, place, None, InvalidRequest(f"not JSON: {error}"))
    if not isinstance(record, dict):
        return Line(source, number, place, None, InvalidRequest(f"a line must be an object, not {kind(record)}"))
    id = str(record.get("id", record.get("_id", place)))
    try:
        return Line(source, number, id, text_of(record, fields))
    except InvalidRequest as error:
        return Line(source, number, id, None, error)


def text_of(record: dict[str, Any], fields: Sequence[str]) -> Text:
    """The text of a record with an instruction of its own, if it has one."""
    for name in fields:
        if name not in record:
            raise InvalidRequest(f"no field {name!r}; the line has {', '.join(record) or 'none'}")
    for name in (*fields, *OWN_FIELDS):
        if name in record and not isinstance(record[name], str):
            raise InvalidRequest(f"field {name!r} must be a string, not {kind(record[name])}")
    text = " ".join(record[name] for name in fields)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("the text holds half of a surrogate pair, which is no character")
    role = record.get("role")
    if role is not None and role not in ROLES:
        raise InvalidRequest(f"role is {role!r}, it must be one of {', '.join(ROLES)}")
    return Text(text, **{name: record[name] for name in OWN_FIELDS if name in record})


def kind(value: object) -> str:
    """A JSON value's kind, as JSON calls it."""
    names = {dict: "object", list: "array", bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value), "null")
