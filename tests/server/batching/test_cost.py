"""The cost model against known costs, and what it does when it cannot know."""

import numpy as np
import pytest

from embedmux.server.batching.cost import CostModel


def lengths_of(chosen: np.random.Generator) -> np.ndarray:
    return np.clip(chosen.lognormal(3, 1, chosen.integers(1, 60)), 2, 512).astype(int)


@pytest.mark.parametrize("wanted", [(8e-4, 5e-6, 2e-9), (0.0, 5e-5, 0.0), (2e-2, 1e-7, 1e-9), (1e-4, 0.0, 3e-7)])
def test_costs_are_found_in_noise(wanted: tuple[float, float, float]) -> None:
    chosen, model = np.random.default_rng(), CostModel()
    a, b, c = wanted
    for _ in range(300):
        lengths = lengths_of(chosen)
        tokens, squares = int(lengths.sum()), int((lengths**2).sum())
        model.observe(tokens, squares, (a + b * tokens + c * squares) * chosen.uniform(0.95, 1.05))
    for _ in range(50):
        lengths = lengths_of(chosen)
        tokens, squares = int(lengths.sum()), int((lengths**2).sum())
        assert model.batch(tokens, squares) == pytest.approx(a + b * tokens + c * squares, rel=0.1)
    assert 0.01 < model.error < 0.05
    assert min(model.coefficients) >= 0


def test_one_size_alone_is_predicted_and_one_interruption_changes_little() -> None:
    model = CostModel()
    assert not model.is_known
    for _ in range(100):
        model.observe(2048, 30_000, 0.011)
    model.observe(2048, 30_000, 5.0)
    assert model.is_known
    assert model.batch(2048, 30_000) == pytest.approx(0.011, rel=0.35)


def test_sizes_that_are_rare_are_not_forgotten() -> None:
    model = CostModel()
    for _ in range(4):
        model.observe(16, 256, 0.002)
    for _ in range(5000):
        model.observe(2048, 30_000, 0.02)
    assert model.batch(16, 256) == pytest.approx(0.002, rel=0.1)


def test_a_text_costs_what_it_adds() -> None:
    model = CostModel()
    model.coefficients = (1.0, 0.25, 0.5)
    assert model.text(4) == 0.25 * 4 + 0.5 * 16
    assert model.batch(4, 16) == 1.0 + model.text(4)
