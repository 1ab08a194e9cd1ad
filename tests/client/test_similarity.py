"""Similarity per encoding against its definition, and the comparisons that are refused."""

import numpy as np
import pytest

from embedmux.client.vectors import Embeddings
from embedmux.server.errors import InvalidRequest, NotFound, SpaceMismatch
from embedmux.server.records import Encoding, Space

RANDOM = np.random.default_rng(3)
HERE = Space("retrieval-384")


def embeddings(
    vectors: np.ndarray, encoding: Encoding = Encoding.FLOAT32, *, space: Space = HERE, dimensions: int | None = None
) -> Embeddings:
    counts = np.ones(len(vectors), dtype=np.int64)
    width = vectors.shape[1] if dimensions is None else dimensions
    return Embeddings(vectors, encoding, width, [space] * len(vectors), counts, counts)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_float_similarity_is_cosine_whatever_the_lengths(dtype: type) -> None:
    first, second = (RANDOM.standard_normal((rows, 33)).astype(dtype) * 3 for rows in (4, 5))
    wide, other = first.astype(np.float64), second.astype(np.float64)
    expected = (wide @ other.T) / np.outer(np.linalg.norm(wide, axis=1), np.linalg.norm(other, axis=1))
    actual = embeddings(first).similarity(embeddings(second))
    assert actual.shape == (4, 5) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_zero_row_is_like_nothing() -> None:
    assert embeddings(np.zeros((1, 4), np.float32)).similarity(embeddings(np.ones((1, 4), np.float32))).item() == 0


def test_int8_similarity_is_the_exact_dot_product_and_uint8_agrees_with_it() -> None:
    codes = RANDOM.integers(-128, 128, (6, 4096)).astype(np.int8)
    codes[0] = -128
    expected = codes.astype(np.int64) @ codes.astype(np.int64).T
    signed = embeddings(codes, Encoding.INT8)
    unsigned = embeddings((codes.astype(np.int16) + 128).astype(np.uint8), Encoding.UINT8)
    np.testing.assert_array_equal(signed.similarity(signed), expected)
    np.testing.assert_array_equal(unsigned.similarity(unsigned), expected)
    assert signed.similarity(signed).dtype == np.int32


@pytest.mark.parametrize("dimensions", [8, 20, 63])
def test_binary_similarity_counts_differing_bits_of_the_dimensions_alone(dimensions: int) -> None:
    bits = RANDOM.integers(0, 2, (5, dimensions)).astype(np.uint8)
    packed = np.packbits(bits, axis=1)
    hamming = (bits[:, None, :] != bits[None, :, :]).sum(axis=2)
    unsigned = embeddings(packed, Encoding.UBINARY, dimensions=dimensions)
    signed = embeddings((packed.astype(np.int16) - 128).astype(np.int8), Encoding.BINARY, dimensions=dimensions)
    for both in (unsigned, signed):
        np.testing.assert_allclose(both.similarity(both), 1 - 2 * hamming / dimensions, atol=1e-6)


def test_vectors_of_two_spaces_are_refused_naming_both() -> None:
    rows = np.ones((2, 4), np.float32)
    with pytest.raises(SpaceMismatch, match=r"space retrieval-384.*space classification-384"):
        embeddings(rows).similarity(embeddings(rows, space=Space("classification-384")))


def test_one_side_that_mixes_spaces_is_refused_too() -> None:
    mixed = embeddings(np.ones((2, 4), np.float32))
    mixed.spaces[1] = Space("clustering-384")
    with pytest.raises(SpaceMismatch, match=r"text 0 of the first .* with text 1 of the first"):
        mixed.similarity(mixed)


def test_codes_of_two_calibrations_are_refused_naming_both() -> None:
    rows = np.ones((1, 4), np.int8)
    sides = [embeddings(rows, Encoding.INT8, space=Space("s", ranges)) for ranges in ("may", "june")]
    with pytest.raises(SpaceMismatch, match=r"calibration may.*calibration june.*different calibrations"):
        sides[0].similarity(sides[1])


def test_embeddings_without_dense_vectors_say_what_to_ask_for() -> None:
    nothing = embeddings(np.zeros((2, 0), np.float32))
    with pytest.raises(InvalidRequest, match='no dense vectors; name "dense" among their outputs'):
        nothing.similarity(nothing)


def test_two_encodings_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot compare float32 with int8 vectors"):
        embeddings(np.ones((1, 4), np.float32)).similarity(embeddings(np.ones((1, 4), np.int8), Encoding.INT8))


def test_a_failed_text_is_refused_with_its_reason() -> None:
    failed = embeddings(np.ones((2, 4), np.float32))
    failed.spaces[1] = None
    failed.errors[1] = NotFound("no task 'sport'")
    with pytest.raises(InvalidRequest, match="text 1 of the second embeddings has no vector \\(no task 'sport'\\)"):
        failed[0].similarity(failed)
    assert failed[0].similarity(failed[0]).item() == pytest.approx(1)
