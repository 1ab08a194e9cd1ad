"""Vectors as safetensors. The format's own writer wants all tensors in memory, so the header is written here."""

import json
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embedmux.server.cli.rows import VALUE_BYTES, Layout, Rows, row_width
from embedmux.server.records import Encoding, Space

FOUR_BYTES = {"I32": 4, "U32": 4}


class Spool:
    """A tensor that grows on disk, beside the file it will be copied into."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.file: BinaryIO = path.open("w+b")

    def shape(self, width: int | None) -> list[int]:
        """[n], or [n, width]; nothing was written if the width is 0."""
        num_values = self.file.tell() // {**VALUE_BYTES, **FOUR_BYTES}[self.kind]
        return [num_values] if width is None else [num_values // width if width else 0, width]


class SafetensorsFile:
    """Tensors ``num_tokens``, ``num_tokens_original``, ``status`` and ``space`` [n] int32, and those of the outputs.

    Dense: ``vectors`` [n, width]. Sparse: text i has the token ids ``sparse_ids[o[i]:o[i + 1]]`` with as many
    ``sparse_weights``, where o is ``sparse_offsets`` [n + 1]. Tokens: text i has the rows
    ``token_vectors[o[i]:o[i + 1]]``, where o is ``token_offsets``. ``space`` is an index into the metadata entry
    ``spaces`` (a JSON list), -1 for a failed text. The id of row i is the UTF-8 text
    ``id_bytes[id_offsets[i]:id_offsets[i + 1]]``. Vectors go to disk at once; the rest is some ten bytes a row.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._columns = {name: array("i") for name in ("num_tokens", "num_tokens_original", "status", "space")}
        self._spaces: dict[Space, int] = {}
        self._id_bytes = bytearray()
        self._offsets = {"id_offsets": array("q", [0])}
        self._token_dimensions = 0
        self._spools: dict[str, Spool] = {}
        kinds = {"dense": {"vectors": layout.kind}, "sparse": {"sparse_ids": "U32", "sparse_weights": "F32"}}
        kinds["tokens"] = {"token_vectors": layout.kind}
        for output, names in kinds.items():
            if output in layout.outputs:
                for name, kind in names.items():
                    self._spools[name] = Spool(path.with_name(f"{path.name}.{name}"), kind)
        if "sparse" in layout.outputs:
            self._offsets["sparse_offsets"] = array("q", [0])
        if "tokens" in layout.outputs:
            self._offsets["token_offsets"] = array("q", [0])

    def write(self, rows: Rows) -> None:
        """Appends ``rows``."""
        if "vectors" in self._spools:
            self._spools["vectors"].file.write(wire_bytes(rows.vectors, self._layout.encoding))
        if rows.sparse is not None:
            self._spools["sparse_ids"].file.write(rows.sparse.ids.astype("<u4").tobytes())
            self._spools["sparse_weights"].file.write(rows.sparse.weights.astype("<f4").tobytes())
            extend_offsets(self._offsets["sparse_offsets"], np.diff(rows.sparse.offsets).tolist())
        if rows.tokens is not None:
            self._spools["token_vectors"].file.write(wire_bytes(rows.tokens.vectors, self._layout.encoding))
            extend_offsets(self._offsets["token_offsets"], np.diff(rows.tokens.offsets).tolist())
            self._token_dimensions = rows.tokens.dimensions or self._token_dimensions
        self._columns["num_tokens"].extend(rows.num_tokens)
        self._columns["num_tokens_original"].extend(rows.num_tokens_original)
        self._columns["status"].extend(rows.status)
        self._columns["space"].extend(
            -1 if space is None else self._spaces.setdefault(space, len(self._spaces)) for space in rows.spaces
        )
        ids = [id.encode("utf-8", "replace") for id in rows.ids]
        self._id_bytes += b"".join(ids)
        extend_offsets(self._offsets["id_offsets"], list(map(len, ids)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None:
        try:
            if kind is None:
                part = self._path.with_name(self._path.name + ".part")
                with part.open("wb") as file:
                    self._assemble(file)
                part.replace(self._path)
        finally:
            for spool in self._spools.values():
                spool.file.close()
                spool.path.unlink()

    def _assemble(self, file: BinaryIO) -> None:
        """Header, then tensors in the header's order: widest values first, which keeps each aligned."""
        tensors: list[tuple[str, str, list[int], int]] = []
        for name, offsets in self._offsets.items():
            tensors.append((name, "I64", [len(offsets)], 8 * len(offsets)))
        for name, column in self._columns.items():
            tensors.append((name, "I32", [len(column)], 4 * len(column)))
        widths = {
            "vectors": self._layout.width,
            "token_vectors": row_width(self._layout.encoding, self._token_dimensions),
        }
        # Values of 4 bytes before those of an encoding, which may be narrower.
        spools = sorted(self._spools.items(), key=lambda item: item[0] in widths)
        for name, spool in spools:
            tensors.append((name, spool.kind, spool.shape(widths.get(name)), spool.file.tell()))
        tensors += [("id_bytes", "U8", [len(self._id_bytes)], len(self._id_bytes))]
        header: dict[str, Any] = {"__metadata__": self._metadata()}
        end = 0
        for name, kind, sizes, length in tensors:
            header[name] = {"dtype": kind, "shape": sizes, "data_offsets": [end, end + length]}
            end += length
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for offsets in self._offsets.values():
            file.write(np.array(offsets, dtype="<i8").tobytes())
        for column in self._columns.values():
            file.write(np.array(column, dtype="<i4").tobytes())
        for _, spool in spools:
            spool.file.seek(0)
            shutil.copyfileobj(spool.file, file, length=1 << 20)
        file.write(self._id_bytes)

    def _metadata(self) -> dict[str, str]:
        spaces = [{"id": space.id, "calibration": space.calibration} for space in self._spaces]
        return {
            "format": "embedmux-vectors-1",
            "encoding": self._layout.encoding.value,
            "dimensions": str(self._layout.dimensions),
            "token_dimensions": str(self._token_dimensions),
            "outputs": ",".join(self._layout.outputs),
            "spaces": json.dumps(spaces),
        }


def extend_offsets(offsets: "array[int]", lengths: Sequence[int]) -> None:
    """Adds texts with these lengths behind those that are there."""
    for length in lengths:
        offsets.append(offsets[-1] + length)


def wire_bytes(vectors: NDArray[np.generic], encoding: Encoding) -> bytes:
    """The rows as the server sent them, little-endian; float32 values that came as bfloat16 lose nothing."""
    if encoding is Encoding.BFLOAT16:
        return (vectors.view(np.uint32) >> 16).astype("<u2").tobytes()
    return vectors.astype(vectors.dtype.newbyteorder("<")).tobytes()
