"""Smaller vectors of models that put a layer norm before the cut, beside torch's own in float64."""

import numpy as np
import pytest
import torch

from embedmux.server.errors import EngineFailure
from embedmux.server.heads.build import Heads
from embedmux.server.heads.dense import NormedCut
from embedmux.server.outputs import encode_rows
from embedmux.server.packed import TokenStates
from embedmux.server.records import Encoding, OutputSpec, Pooling

WIDTH, LENGTHS = 96, (4, 1, 7)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0).int()


def encoded(hidden: torch.Tensor, dimensions: int, heads: Heads) -> np.ndarray:
    """[3, dimensions] float32."""
    spec = (OutputSpec(dimensions, Encoding.FLOAT32), None)
    ids = [np.zeros(length, np.int32) for length in LENGTHS]
    rows = encode_rows(TokenStates(hidden, OFFSETS), [0, 1, 2], ids, [spec] * 3, Pooling.MEAN, heads)
    assert not any(isinstance(row, EngineFailure) for row in rows)
    return np.stack([np.frombuffer(row.tobytes(), "<f4") for row in rows])


@pytest.fixture
def hidden() -> torch.Tensor:
    """States whose values have a mean, so that taking it away is seen."""
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(torch.seed() % 2**32)) + 1.0


@pytest.fixture
def heads() -> Heads:
    return Heads(dense=NormedCut(WIDTH, torch.device("cpu")))


@pytest.mark.parametrize("dimensions", [64, 33, 1])
def test_a_smaller_size_is_normed_then_cut_then_brought_to_length_one(
    hidden: torch.Tensor, heads: Heads, dimensions: int
) -> None:
    pooled = torch.stack([part.double().mean(0) for part in hidden.split(list(LENGTHS))])
    cut = torch.nn.functional.layer_norm(pooled, (WIDTH,))[:, :dimensions]
    wanted = torch.nn.functional.normalize(cut, dim=1).numpy()
    found = encoded(hidden, dimensions, heads)
    assert np.abs(found - wanted).max() < 2e-5  # the float32 sums of up to seven states
    if dimensions > 1:
        plain = encoded(hidden, dimensions, Heads())
        assert ((plain * wanted).sum(1) < 0.999).all()


def test_the_full_size_is_not_normed(hidden: torch.Tensor, heads: Heads) -> None:
    assert (encoded(hidden, WIDTH, heads) == encoded(hidden, WIDTH, Heads())).all()
