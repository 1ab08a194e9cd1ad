"""Vectors as safetensors. The format's own writer wants all tensors in memory, so the header is written here."""

import json
import shutil
from array import array
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embedmux.server.cli.rows import VALUE_KINDS, Rows, row_width
from embedmux.server.records import Encoding, Space


class SafetensorsFile:
    """Tensors ``vectors`` [n, width], ``num_tokens``, ``num_tokens_original``, ``status`` and ``space`` [n] int32.

    ``space`` is an index into the metadata entry ``spaces`` (a JSON list), -1 for a failed text. The id of row i is the
    UTF-8 text ``id_bytes[id_offsets[i]:id_offsets[i + 1]]``. Rows go to disk at once; the rest is some ten bytes a row.
    """

    def __init__(self, path: Path, encoding: Encoding, dimensions: int) -> None:
        self._path = path
        self._encoding = encoding
        self._dimensions = dimensions
        self._rows_path = path.with_name(path.name + ".rows")
        self._rows: BinaryIO = self._rows_path.open("wb")
        self._columns = {name: array("i") for name in ("num_tokens", "num_tokens_original", "status", "space")}
        self._spaces: dict[Space, int] = {}
        self._id_bytes = bytearray()
        self._id_offsets = array("q", [0])

    def write(self, rows: Rows) -> None:
        """Appends ``rows``."""
        self._rows.write(wire_bytes(rows.vectors, self._encoding))
        self._columns["num_tokens"].extend(rows.num_tokens)
        self._columns["num_tokens_original"].extend(rows.num_tokens_original)
        self._columns["status"].extend(rows.status)
        self._columns["space"].extend(
            -1 if space is None else self._spaces.setdefault(space, len(self._spaces)) for space in rows.spaces
        )
        for id in rows.ids:
            self._id_bytes += id.encode("utf-8", "replace")
            self._id_offsets.append(len(self._id_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None:
        self._rows.close()
        try:
            if kind is None:
                part = self._path.with_name(self._path.name + ".part")
                with part.open("wb") as file, self._rows_path.open("rb") as rows:
                    self._assemble(file, rows)
                part.replace(self._path)
        finally:
            self._rows_path.unlink()

    def _assemble(self, file: BinaryIO, rows: BinaryIO) -> None:
        """Header, then tensors in the header's order: widest values first, which keeps each aligned."""
        num_rows = len(self._id_offsets) - 1
        num_bytes = self._encoding.row_bytes(self._dimensions)
        shape = [num_rows, row_width(self._encoding, self._dimensions)]
        tensors: list[tuple[str, str, list[int], int]] = [("id_offsets", "I64", [num_rows + 1], 8 * (num_rows + 1))]
        tensors += [(name, "I32", [num_rows], 4 * num_rows) for name in self._columns]
        tensors += [("vectors", VALUE_KINDS[self._encoding], shape, num_rows * num_bytes)]
        tensors += [("id_bytes", "U8", [len(self._id_bytes)], len(self._id_bytes))]
        header: dict[str, Any] = {"__metadata__": self._metadata()}
        end = 0
        for name, kind, sizes, length in tensors:
            header[name] = {"dtype": kind, "shape": sizes, "data_offsets": [end, end + length]}
            end += length
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.write(np.array(self._id_offsets, dtype="<i8").tobytes())
        for column in self._columns.values():
            file.write(np.array(column, dtype="<i4").tobytes())
        shutil.copyfileobj(rows, file, length=1 << 20)
        file.write(self._id_bytes)

    def _metadata(self) -> dict[str, str]:
        spaces = [{"id": space.id, "calibration": space.calibration} for space in self._spaces]
        return {
            "format": "embedmux-vectors-1",
            "encoding": self._encoding.value,
            "dimensions": str(self._dimensions),
            "spaces": json.dumps(spaces),
        }


def wire_bytes(vectors: NDArray[np.generic], encoding: Encoding) -> bytes:
    """The rows as the server sent them, little-endian; float32 values that came as bfloat16 lose nothing."""
    if encoding is Encoding.BFLOAT16:
        return (vectors.view(np.uint32) >> 16).astype("<u2").tobytes()
    return vectors.astype(vectors.dtype.newbyteorder("<")).tobytes()
