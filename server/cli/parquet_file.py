"""Vectors as parquet; pyarrow is an extra, so it is imported when a file is opened."""

import importlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedmux.server.cli.rows import Layout, Rows

ROW_GROUP = 8192
MAX_GROUP_BYTES = 64 << 20  # token vectors take a hundred times the room of dense ones
ARROW_TYPES = {"F32": "float32", "BF16": "float32", "F16": "float16", "I8": "int8", "U8": "uint8"}


class ParquetFile:
    """Columns id, space, calibration, num_tokens, num_tokens_original and status, and those of the outputs.

    Dense: vector, a list of fixed size, null for a failed text. Sparse: sparse_ids and sparse_weights, lists of one
    length. Tokens: token_vectors, a list of vectors. bfloat16 is stored as float32, since parquet has no bfloat16.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._arrow = arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        self._layout = layout
        self._value = getattr(arrow, ARROW_TYPES[layout.kind])()
        text, number = arrow.string(), arrow.int32()
        columns = [("id", text)]
        if "dense" in layout.outputs:
            columns.append(("vector", arrow.list_(self._value, layout.width)))
        if "sparse" in layout.outputs:
            columns += [("sparse_ids", arrow.list_(arrow.uint32())), ("sparse_weights", arrow.list_(arrow.float32()))]
        if "tokens" in layout.outputs:
            columns.append(("token_vectors", arrow.list_(arrow.list_(self._value))))
        columns += [("space", text), ("calibration", text)]
        columns += [("num_tokens", number), ("num_tokens_original", number), ("status", number)]
        metadata = {"encoding": layout.encoding.value, "dimensions": str(layout.dimensions)}
        self._schema = arrow.schema(columns, metadata=metadata)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._writer = parquet.ParquetWriter(str(self._part), self._schema)
        self._tables: list[Any] = []

    def write(self, rows: Rows) -> None:
        """Appends ``rows``; they go to disk when a row group is full."""
        columns: dict[str, Any] = {
            "id": rows.ids,
            "space": [None if space is None else space.id for space in rows.spaces],
            "calibration": [None if space is None else space.calibration for space in rows.spaces],
            "num_tokens": rows.num_tokens,
            "num_tokens_original": rows.num_tokens_original,
            "status": rows.status,
        }
        arrays = {name: self._arrow.array(values, type=self._type(name)) for name, values in columns.items()}
        arrays |= self._outputs(rows)
        in_order = [arrays[name] for name in self._schema.names]
        self._tables.append(self._arrow.Table.from_arrays(in_order, schema=self._schema))
        num_bytes = sum(table.nbytes for table in self._tables)
        if sum(table.num_rows for table in self._tables) >= ROW_GROUP or num_bytes >= MAX_GROUP_BYTES:
            self._flush()

    def _outputs(self, rows: Rows) -> dict[str, Any]:
        """The columns of the outputs, made from flat arrays."""
        arrow, found = self._arrow, {}
        if "dense" in self._layout.outputs:
            failed = arrow.array([status != 0 for status in rows.status])
            flat = arrow.array(rows.vectors.reshape(-1), type=self._value)
            found["vector"] = arrow.FixedSizeListArray.from_arrays(flat, self._layout.width, mask=failed)
        if rows.sparse is not None:
            for name, values in (("sparse_ids", rows.sparse.ids), ("sparse_weights", rows.sparse.weights)):
                found[name] = arrow.ListArray.from_arrays(
                    offsets_array(arrow, rows.sparse.offsets), arrow.array(values)
                )
        if rows.tokens is not None:
            num_rows, width = rows.tokens.vectors.shape
            flat = arrow.array(rows.tokens.vectors.reshape(-1), type=self._value)
            vectors = arrow.ListArray.from_arrays(offsets_array(arrow, np.arange(num_rows + 1) * width), flat)
            found["token_vectors"] = arrow.ListArray.from_arrays(offsets_array(arrow, rows.tokens.offsets), vectors)
        return found

    def _type(self, name: str) -> Any:
        return self._schema.field(name).type

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


def offsets_array(arrow: Any, offsets: NDArray[np.int64]) -> Any:
    """Offsets as arrow wants those of a list."""
    return arrow.array(offsets, type=arrow.int32())
