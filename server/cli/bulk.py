"""Lines through a server, in order and in bounded memory: what ``embedmux embed`` does once it knows what is wanted."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from embedmux.client.blocking import Client
from embedmux.client.errors import UnexpectedReply, status_of
from embedmux.client.texts import EmbedOptions, Text
from embedmux.client.vectors import Embeddings
from embedmux.server.cli.lines import Line
from embedmux.server.cli.rows import VALUE_KINDS, Rows, row_width
from embedmux.server.errors import EmbedmuxError
from embedmux.server.records import Encoding, Space

VALUE_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.float32, "I8": np.int8, "U8": np.uint8}


@dataclass(frozen=True, slots=True)
class Answered:
    """Consecutive lines with their rows; ``errors`` maps the index of a failed one to its reason."""

    lines: list[Line]
    rows: Rows
    errors: dict[int, EmbedmuxError]


def answer(
    client: Client, lines: Iterable[Line], options: EmbedOptions, *, batch_size: int, dimensions: int
) -> Iterator[Answered]:
    """Every line answered, in order. Raises what concerns all of them; what concerns one is in ``Answered.errors``."""
    encoding = Encoding(options.get("encoding", "float32"))
    sent: deque[list[Line]] = deque()  # in the order of the answers; filled by the thread that feeds the stream

    def batches() -> Iterator[list[str | Text]]:
        for batch in batched(lines, batch_size):
            sent.append(batch)
            if texts := texts_of(batch):
                yield texts

    for embeddings in client.embed_stream(batches(), errors="return", **options):
        if embeddings.dimensions != dimensions:
            raise UnexpectedReply(f"the server sent {embeddings.dimensions} dimensions, {dimensions} were asked for")
        while not texts_of(sent[0]):
            yield answered(sent.popleft(), None, encoding, dimensions)
        yield answered(sent.popleft(), embeddings, encoding, dimensions)
    for batch in sent:
        yield answered(batch, None, encoding, dimensions)


def answered(batch: list[Line], embeddings: Embeddings | None, encoding: Encoding, dimensions: int) -> Answered:
    """``batch`` with the rows of those lines that were sent; the others' are zero."""
    sent = [index for index, line in enumerate(batch) if line.text is not None]
    errors = {index: line.error for index, line in enumerate(batch) if line.error is not None}
    vectors = np.zeros((len(batch), row_width(encoding, dimensions)), VALUE_TYPES[VALUE_KINDS[encoding]])
    num_tokens, num_tokens_original = [0] * len(batch), [0] * len(batch)
    spaces: list[Space | None] = [None] * len(batch)
    if embeddings is not None:
        vectors[sent] = embeddings.vectors
        errors |= {sent[index]: error for index, error in embeddings.errors.items()}
        for row, index in enumerate(sent):
            num_tokens[index] = int(embeddings.num_tokens[row])
            num_tokens_original[index] = int(embeddings.num_tokens_original[row])
            spaces[index] = embeddings.spaces[row]
    status = [status_of(errors[index]).value[0] if index in errors else 0 for index in range(len(batch))]
    ids = [line.id for line in batch]
    return Answered(batch, Rows(ids, vectors, status, spaces, num_tokens, num_tokens_original), errors)


def texts_of(batch: list[Line]) -> list[str | Text]:
    """The texts of those lines that have one."""
    return [line.text for line in batch if line.text is not None]


def batched(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Lists of ``size`` consecutive lines; the last may be shorter."""
    iterator = iter(lines)
    while batch := list(islice(iterator, size)):
        yield batch


class ErrorFile:
    """One JSON object for every failed line; the file exists only if there are any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        path.unlink(missing_ok=True)  # an earlier run's

    def write(self, answered: Answered) -> None:
        """Adds the failed lines of ``answered``."""
        for index, error in sorted(answered.errors.items()):
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8")
            line = answered.lines[index]
            record = {
                "source": line.source,
                "line": line.number,
                "id": line.id,
                "code": status_of(error).name,
                "message": str(error),
            }
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()
