"""Vectors on disk: safetensors or parquet, written as they come and renamed when whole, so no half file is left."""

from pathlib import Path
from typing import Protocol, Self

from embedmux.server.cli.console import WrongUsage
from embedmux.server.cli.parquet_file import ParquetFile
from embedmux.server.cli.rows import Layout, Rows
from embedmux.server.cli.safetensors_file import SafetensorsFile

WRITERS: dict[str, type[SafetensorsFile] | type[ParquetFile]] = {
    ".safetensors": SafetensorsFile,
    ".parquet": ParquetFile,
}


class VectorFile(Protocol):
    """A file that is being written; ``with`` makes it whole, or removes it after an exception."""

    def write(self, rows: Rows) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None: ...


def check_output(path: Path) -> None:
    """Raises WrongUsage for a suffix no writer knows, or a folder that is not there."""
    if path.suffix not in WRITERS:
        raise WrongUsage(f"output {str(path)!r} must end in {' or '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise WrongUsage(f"output {str(path)!r}: there is no folder {str(path.parent)!r}")


def vector_file(path: Path, layout: Layout) -> VectorFile:
    """The writer for the path's suffix."""
    return WRITERS[path.suffix](path, layout)
