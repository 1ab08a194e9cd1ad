"""Lines through a server, in order and in bounded memory: what ``embedmux embed`` does once it knows what is wanted."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from embedmux.client.blocking import Client
from embedmux.client.errors import UnexpectedReply, status_of
from embedmux.client.ragged import offsets_of
from embedmux.client.sparse import SparseWeights
from embedmux.client.texts import EmbedOptions, Text
from embedmux.client.token_vectors import TokenVectors
from embedmux.client.vectors import Embeddings
from embedmux.server.cli.lines import Line
from embedmux.server.cli.rows import VALUE_TYPES, Layout, Rows
from embedmux.server.errors import EmbedmuxError
from embedmux.server.records import Space


@dataclass(frozen=True, slots=True)
class Answered:
    """Consecutive lines with their rows; ``errors`` maps the index of a failed one to its reason.

    ``rendered`` has the exact text the model read of each line, and is empty unless it was asked for.
    """

    lines: list[Line]
    rows: Rows
    errors: dict[int, EmbedmuxError]
    rendered: list[str]


def answer(
    client: Client, lines: Iterable[Line], options: EmbedOptions, *, batch_size: int, layout: Layout
) -> Iterator[Answered]:
    """Every line answered, in order. Raises what concerns all of them; what concerns one is in ``Answered.errors``."""
    sent: deque[list[Line]] = deque()  # in the order of the answers; filled by the thread that feeds the stream

    def batches() -> Iterator[list[str | Text]]:
        for batch in batched(lines, batch_size):
            sent.append(batch)
            if texts := texts_of(batch):
                yield texts

    for embeddings in client.embed_stream(batches(), errors="return", **options):
        if embeddings.dimensions != layout.dimensions:
            raise UnexpectedReply(
                f"the server sent {embeddings.dimensions} dimensions, {layout.dimensions} were asked for"
            )
        while not texts_of(sent[0]):
            yield answered(sent.popleft(), None, layout)
        yield answered(sent.popleft(), embeddings, layout)
    for batch in sent:
        yield answered(batch, None, layout)


def answered(batch: list[Line], embeddings: Embeddings | None, layout: Layout) -> Answered:
    """``batch`` with the rows of those lines that were sent; the others' are zero."""
    sent = [index for index, line in enumerate(batch) if line.text is not None]
    errors = {index: line.error for index, line in enumerate(batch) if line.error is not None}
    vectors = np.zeros((len(batch), layout.width), VALUE_TYPES[layout.kind])
    num_tokens, num_tokens_original = [0] * len(batch), [0] * len(batch)
    spaces: list[Space | None] = [None] * len(batch)
    rendered: list[str] = []
    if embeddings is not None:
        vectors[sent] = embeddings.vectors
        errors |= {sent[index]: error for index, error in embeddings.errors.items()}
        if embeddings.rendered:
            rendered = [""] * len(batch)
        for row, index in enumerate(sent):
            num_tokens[index] = int(embeddings.num_tokens[row])
            num_tokens_original[index] = int(embeddings.num_tokens_original[row])
            spaces[index] = embeddings.spaces[row]
            if rendered:
                rendered[index] = embeddings.rendered[row]
    status = [status_of(errors[index]).value[0] if index in errors else 0 for index in range(len(batch))]
    ids = [line.id for line in batch]
    rows = Rows(ids, vectors, status, spaces, num_tokens, num_tokens_original)
    if "sparse" in layout.outputs:
        rows = replace(rows, sparse=placed_sparse(embeddings, sent, spaces))
    if "tokens" in layout.outputs:
        rows = replace(rows, tokens=placed_tokens(embeddings, sent, spaces, layout))
    return Answered(batch, rows, errors, rendered)


def placed_sparse(embeddings: Embeddings | None, sent: list[int], spaces: list[Space | None]) -> SparseWeights:
    """The weights of the lines that were sent, at their places among all lines."""
    if embeddings is None or embeddings.sparse is None:
        none = np.zeros(0)
        return SparseWeights(none.astype(np.uint32), none.astype(np.float32), offsets_of([0] * len(spaces)), spaces)
    found = embeddings.sparse
    return replace(found, offsets=placed_offsets(found.offsets, sent, len(spaces)), spaces=spaces, errors={})


def placed_tokens(
    embeddings: Embeddings | None, sent: list[int], spaces: list[Space | None], layout: Layout
) -> TokenVectors:
    """The token vectors of the lines that were sent, at their places among all lines."""
    if embeddings is None or embeddings.tokens is None:
        none = np.zeros((0, 0), VALUE_TYPES[layout.kind])
        return TokenVectors(none, offsets_of([0] * len(spaces)), layout.encoding, 0, spaces)
    found = embeddings.tokens
    return replace(found, offsets=placed_offsets(found.offsets, sent, len(spaces)), spaces=spaces, errors={})


def placed_offsets(offsets: NDArray[np.int64], sent: list[int], num_lines: int) -> NDArray[np.int64]:
    """The offsets of all lines, where those that were not sent are empty."""
    lengths = np.zeros(num_lines, dtype=np.int64)
    lengths[sent] = np.diff(offsets)
    return offsets_of(lengths)


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
