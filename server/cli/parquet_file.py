"""Vectors as parquet; pyarrow is an extra, so it is imported when a file is opened."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from embedmux.server.cli.rows import VALUE_KINDS, Rows, row_width
from embedmux.server.records import Encoding

ROW_GROUP = 8192
ARROW_TYPES = {"F32": "float32", "BF16": "float32", "F16": "float16", "I8": "int8", "U8": "uint8"}


class ParquetFile:
    """Columns id, vector (a list of fixed size, null for a failed text), space, calibration, num_tokens,
    num_tokens_original and status. bfloat16 is stored as float32, since parquet has no bfloat16."""

    def __init__(self, path: Path, encoding: Encoding, dimensions: int) -> None:
        self._arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        self._width = row_width(encoding, dimensions)
        self._value = getattr(self._arrow, ARROW_TYPES[VALUE_KINDS[encoding]])()
        text, number = self._arrow.string(), self._arrow.int32()
        columns = [("id", text), ("vector", self._arrow.list_(self._value, self._width)), ("space", text)]
        columns += [("calibration", text), ("num_tokens", number), ("num_tokens_original", number), ("status", number)]
        metadata = {"encoding": encoding.value, "dimensions": str(dimensions)}
        self._schema = self._arrow.schema(columns, metadata=metadata)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._writer = parquet.ParquetWriter(str(self._part), self._schema)
        self._tables: list[Any] = []

    def write(self, rows: Rows) -> None:
        """Appends ``rows``; they go to disk when a row group is full."""
        flat = self._arrow.array(rows.vectors.reshape(-1), type=self._value)
        failed = self._arrow.array([status != 0 for status in rows.status])
        vectors = self._arrow.FixedSizeListArray.from_arrays(flat, self._width, mask=failed)
        spaces = [None if space is None else space.id for space in rows.spaces]
        calibrations = [None if space is None else space.calibration for space in rows.spaces]
        columns: Sequence[Any] = [
            rows.ids, vectors, spaces, calibrations, rows.num_tokens, rows.num_tokens_original, rows.status
        ]  # fmt: skip
        arrays = [
            column if column is vectors else self._arrow.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._tables.append(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        if sum(table.num_rows for table in self._tables) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(self._arrow.concat_tables(self._tables), row_group_size=ROW_GROUP)
            self._tables.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()
