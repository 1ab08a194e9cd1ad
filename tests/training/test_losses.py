"""Losses against their definitions, term by term."""

import math

import pytest
import torch

from embedmux.training.losses import CONTRASTIVE_TEMPERATURE, drift, supervised_contrast, task_loss


def test_supervised_contrast_is_the_mean_log_share_of_the_positives() -> None:
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.3, 1.0]]), dim=1)
    labels = torch.tensor([0.0, 0.0, 1.0, 2.0])
    similarity = vectors @ vectors.T / CONTRASTIVE_TEMPERATURE
    expected = []
    for row, positive in ((0, 1), (1, 0)):  # rows 2 and 3 are alone with their labels
        others = [other for other in range(4) if other != row]
        whole = math.log(sum(math.exp(similarity[row, other]) for other in others))
        expected.append(whole - float(similarity[row, positive]))
    assert float(supervised_contrast([vectors * 3], labels)) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_drift_is_zero_until_the_texts_move_against_each_other() -> None:
    frozen = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert float(drift([turned], [frozen])) == pytest.approx(0.0, abs=1e-12)
    merged = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(drift([merged[:1], merged[1:]], [frozen[:1], frozen[1:]])) == pytest.approx(0.5)


def test_an_unknown_task_has_no_loss() -> None:
    with pytest.raises(ValueError, match="task 'summaries' has no loss"):
        task_loss("summaries", None)  # type: ignore[arg-type]
