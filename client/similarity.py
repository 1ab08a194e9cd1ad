"""What may be compared, and how alike rows are, per encoding."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedmux.server.errors import EmbedmuxError, InvalidRequest, SpaceMismatch
from embedmux.server.records import Encoding, Space


class Spaced(Protocol):
    """What says with what its texts may be compared."""

    @property
    def spaces(self) -> list[Space | None]: ...
    @property
    def errors(self) -> dict[int, EmbedmuxError]: ...


class Encoded(Spaced, Protocol):
    """Vectors in an encoding."""

    @property
    def encoding(self) -> Encoding: ...


def check_comparable(first: Encoded, second: Encoded) -> None:
    """Raises unless every text of both has a vector of one encoding, space and calibration."""
    if first.encoding is not second.encoding:
        raise InvalidRequest(
            f"cannot compare {first.encoding.value} with {second.encoding.value} vectors; embed both in one encoding"
        )
    check_one_space(first, second)


def check_one_space(first: Spaced, second: Spaced) -> None:
    """Raises unless every text of both was served, in one space and calibration."""
    reference: tuple[str, int, Space] | None = None
    for side, embeddings in (("first", first), ("second", second)):
        for index, space in enumerate(embeddings.spaces):
            if space is None:
                raise InvalidRequest(
                    f"text {index} of the {side} embeddings has no vector ({embeddings.errors[index]}); "
                    "choose the others by index first"
                )
            if reference is None:
                reference = (side, index, space)
            elif space != reference[2]:
                raise space_mismatch(reference, (side, index, space))


def space_mismatch(one: tuple[str, int, Space], other: tuple[str, int, Space]) -> SpaceMismatch:
    """The exception that names both spaces and a text of each."""
    named = " with ".join(
        f"text {index} of the {side} embeddings ({named_space(space)})" for side, index, space in (one, other)
    )
    if one[2].id == other[2].id:
        return SpaceMismatch(
            f"cannot compare {named}: codes of different calibrations; embed both with one calibration"
        )
    return SpaceMismatch(
        f"cannot compare {named}: vectors of different tasks, adapters, sizes or models share no space; "
        "embed both for the same task"
    )


def named_space(space: Space) -> str:
    """A space as messages show it."""
    return f"space {space.id}" + (f", calibration {space.calibration}" if space.calibration else "")


def similarity(
    first: NDArray[np.generic], second: NDArray[np.generic], *, encoding: Encoding, dimensions: int
) -> NDArray[np.float32] | NDArray[np.int32]:
    """[n, w] x [m, w] -> [n, m]; see Embeddings.similarity for the definition per encoding."""
    if encoding in (Encoding.BINARY, Encoding.UBINARY):
        return sign_cosine(first.view(np.uint8), second.view(np.uint8), dimensions)
    if encoding.is_calibrated:
        # uint8 codes are int8 codes plus 128. Sums stay below 2**53, so float64 is exact, and unlike int32 it has BLAS.
        offset = 128.0 if encoding is Encoding.UINT8 else 0.0
        return ((first.astype(np.float64) - offset) @ (second.astype(np.float64) - offset).T).astype(np.int32)
    return normalized(first) @ normalized(second).T


def normalized(rows: NDArray[np.generic]) -> NDArray[np.float32]:
    """Rows of length one, float32; a zero row stays zero."""
    wide = rows.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    wide /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return wide


def sign_cosine(first: NDArray[np.uint8], second: NDArray[np.uint8], dimensions: int) -> NDArray[np.float32]:
    """Cosine of the vectors whose values are +1 for a set bit and -1 for a clear one."""
    signs = [np.unpackbits(rows, axis=1, count=dimensions).astype(np.float32) * 2 - 1 for rows in (first, second)]
    return (signs[0] @ signs[1].T) / np.float32(dimensions)
