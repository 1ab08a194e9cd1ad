"""What an adapter gains: scores before and after on every test set, and on sets it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from sentence_transformers import SentenceTransformer

from embedmux.training.backbone import embedder, load_backbone
from embedmux.training.datasets import find_datasets
from embedmux.training.evaluate import Score, bootstrap_interval, evaluate
from embedmux.training.train import TrainedAdapter, half_precision, train


@dataclass(frozen=True, slots=True)
class Gain:
    """One test set before and after. `left_out` is the score of an adapter that never saw this dataset, if measured."""

    before: Score
    after: Score
    left_out: Score | None = None

    @property
    def points(self) -> float:
        """The gain, x100."""
        return self.after.value - self.before.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain by paired bootstrap over queries; None where the samples are no queries."""
        return bootstrap_interval(self.before, self.after) if self.before.task == "retrieval" else None


def measure_gains(
    trained: TrainedAdapter, *, datasets: Sequence[str] | None = None, leave_out: bool, console: Console
) -> list[Gain]:
    """Score the bare model and the adapter on test parts: of `datasets`, or of all of the task in the data folder.

    `leave_out` trains once more without each dataset, with the same settings, and scores that adapter on it; it takes
    as many training runs as there are datasets and is skipped when there is only one.
    """
    task, data = trained.config.task, trained.config.data
    names = list(datasets or (folder.name for folder in find_datasets(data, task=task, part="test")))
    console.print(f"scoring the bare model on {', '.join(names)}")
    before = score(load_backbone(trained.config.model), {}, task=task, data=data, datasets=names)
    console.print("scoring the adapter")
    after = score(trained.encoder, trained.config.prompts, task=task, data=data, datasets=names)
    gains = [Gain(one, other) for one, other in zip(before, after, strict=True)]
    if not leave_out or len(trained.datasets) < 2:
        return gains
    return [
        replace(gain, left_out=_left_out_score(trained, gain.before.dataset, console))
        if gain.before.dataset in trained.datasets
        else gain
        for gain in gains
    ]


def score(
    encoder: SentenceTransformer, prompts: dict[str, str], *, task: str, data: Path, datasets: Sequence[str]
) -> list[Score]:
    """The scores of one encoder, with bfloat16 matrix products as in training."""
    with half_precision():
        return evaluate(task, data, embedder(encoder, prompts), datasets=datasets)


def _left_out_score(trained: TrainedAdapter, dataset: str, console: Console) -> Score:
    console.print(f"training without {dataset}")
    other = train(replace(trained.config, without=(*trained.config.without, dataset)), console=console)
    (result,) = score(
        other.encoder, trained.config.prompts, task=trained.config.task, data=trained.config.data, datasets=[dataset]
    )
    return result
