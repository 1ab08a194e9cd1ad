"""encode_rows: mixed sizes, encodings and calibrations in one batch give the bytes of each text alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from embedmux.kernels import ops
from embedmux.server.errors import EngineFailure
from embedmux.server.heads.build import Heads
from embedmux.server.outputs import Row, encode_rows
from embedmux.server.packed import TokenStates
from embedmux.server.records import Calibration, Encoding, OutputSpec, Pooling

LENGTHS = (3, 1, 8, 5, 2, 9, 4, 6)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0).int()
WIDTH = 48


def states() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(5))


def calibration(name: str, dimensions: int, low: float) -> Calibration:
    ranges = torch.stack((torch.full((dimensions,), low), torch.full((dimensions,), 0.3)))
    return Calibration(name, dimensions, ranges)


SPECS: list[tuple[OutputSpec, Calibration | None]] = [
    (OutputSpec(WIDTH, Encoding.FLOAT32), None),
    (OutputSpec(20, Encoding.INT8), calibration("a", 20, -0.2)),
    (OutputSpec(20, Encoding.INT8), calibration("b", 20, -0.4)),
    (OutputSpec(20, Encoding.UBINARY), None),
    (OutputSpec(WIDTH, Encoding.FLOAT32), None),
    (OutputSpec(WIDTH, Encoding.FLOAT16), None),
    (OutputSpec(31, Encoding.BINARY), None),
    (OutputSpec(20, Encoding.INT8), calibration("a", 20, -0.2)),
]


def encode(hidden: torch.Tensor, pooling: Pooling) -> list[Row]:
    ids = [np.zeros(length, np.int32) for length in LENGTHS]
    return encode_rows(TokenStates(hidden, OFFSETS), list(range(len(SPECS))), ids, SPECS, pooling, Heads())


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_mixed_batch_gives_the_bytes_of_each_text_alone(pooling: Pooling) -> None:
    hidden = states()
    rows = encode(hidden, pooling)
    for (begin, end), (spec, used), row in zip(pairwise(OFFSETS.tolist()), SPECS, rows, strict=True):
        offsets = torch.tensor([0, end - begin], dtype=torch.int32)
        vector = ops.pool_normalize(hidden[begin:end], offsets, pooling.value, spec.dimensions, True)
        codes = ops.quantize_rows(vector, spec.encoding.value, used.ranges if used else None)
        assert not isinstance(row, EngineFailure)
        assert row.tobytes() == codes.view(torch.uint8).numpy().tobytes()
        assert len(row) == spec.encoding.row_bytes(spec.dimensions)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_fails_its_own_text_only(poison: float) -> None:
    hidden = states()
    good = encode(hidden, Pooling.MEAN)
    hidden[int(OFFSETS[7]), 3] = poison
    rows = encode(hidden, Pooling.MEAN)
    assert isinstance(rows[7], EngineFailure)
    assert "not finite" in str(rows[7])
    for row, before in zip(rows[:7], good[:7], strict=True):
        assert np.array_equal(row, before)
