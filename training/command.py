"""`embedmux train` and `embedmux calibrate`: from a data folder to the files that the server loads."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from cyclopts import Parameter
from rich.console import Console

from embedmux.training.backbone import embedder, load_backbone
from embedmux.training.calibrate import calibrate, calibration_texts, write_calibration
from embedmux.training.card import write_card
from embedmux.training.config import RECIPES, TrainingConfig
from embedmux.training.datasets import KIND_OF_TASK, DatasetError, list_datasets
from embedmux.training.folder import round_weights, write_adapter
from embedmux.training.report import measure_gains
from embedmux.training.split import load_splits
from embedmux.training.train import TrainedAdapter, half_precision, train

Number = TypeVar("Number", int, float)


def train_command(
    *,
    task: Literal["retrieval", "text-matching", "classification", "clustering"],
    data: Path,
    out: Path,
    model: str = "minilm",
    rank: int | None = None,
    alpha: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    anchor: float | None = None,
    check_every: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    without: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    seed: int = 42,
    max_minutes: float = 60.0,
    max_tokens: int = 128,
    max_examples: int = 1500,
    threads: int | None = None,
    evaluate: Annotated[bool, Parameter(negative="")] = False,
    leave_out: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a LoRA adapter for one task on a frozen model, ready to be served.

    ``embedmux train --task retrieval --data DATA --out adapters/retrieval`` takes every retrieval dataset under DATA,
    trains on its train part and writes the adapter with its ranges for int8 and its card.
    ``embedmux serve --adapters adapters`` then serves it. Training takes minutes on a CPU; the weights that do best on
    a held-back slice of the training data are kept, so too many steps do no harm.

    DATA holds one folder per dataset, each with a dataset.json {"name": ..., "kind": ...} and, by kind:
    retrieval: corpus.jsonl {_id, title, text}, queries.jsonl {_id, text}, qrels/train.tsv (BEIR);
    similarity: pairs.train.jsonl {text1, text2, score}; classification: train.jsonl {text, label};
    clustering: test.jsonl {text, label}, and in dataset.json the labels in train_labels and test_labels.
    Any .jsonl may be a .jsonl.gz.

    Parameters
    ----------
    task
        What the vectors are for; it sets the loss and, where you give none, the settings below.
    data
        The folder that holds the dataset folders.
    out
        Where the adapter goes; files of an adapter that lies there are replaced.
    model
        The frozen base: a packaged model (minilm), a local directory or a hub id.
    rank
        Rank of the LoRA matrices: more learns more and costs more in serving. Default by task, 8 to 16.
    alpha
        The update is scaled by alpha / rank. Default: twice the rank.
    steps
        Training steps at most. Default by task.
    batch_size
        Rows of one step; a contrastive loss learns more from larger batches. Default by task.
    learning_rate
        Peak of the rate, after a warm-up over a tenth of the steps. Default by task.
    anchor
        Weight of a pull towards the bare model: higher forgets less of what the training data does not show and gains
        less on what it does. Default: 20 for clustering, else 0.
    check_every
        Steps between two looks at the held-back data; four without a gain end the run. Default: 40, clustering 20.
    query_prompt
        Text put before every query, in training and in serving. Default for retrieval: "query: ".
    document_prompt
        Text put before every document. Default for retrieval: "document: ".
    without
        Datasets to leave out; repeat the option.
    seed
        The same seed, data and thread count give the same adapter.
    max_minutes
        Wall time after which training stops with the best weights so far.
    max_tokens
        Where texts are cut in training.
    max_examples
        The most pairs taken from one retrieval set, so that large sets do not drown small ones.
    threads
        Compute threads. Default: all cores.
    evaluate
        Score the bare model and the adapter on the test parts and put the table into the card.
    leave_out
        With --evaluate: also train once without each dataset and score on it, to see what a new source would gain.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    recipe = RECIPES[task]
    chosen_rank = _given(rank, recipe.rank)
    config = TrainingConfig(
        task=task,
        model=model,
        data=data,
        rank=chosen_rank,
        alpha=_given(alpha, 2.0 * chosen_rank),
        steps=_given(steps, recipe.steps),
        batch_size=_given(batch_size, recipe.batch_size),
        learning_rate=_given(learning_rate, recipe.learning_rate),
        anchor=_given(anchor, recipe.anchor),
        check_every=_given(check_every, recipe.check_every),
        prompts=_prompts(recipe.prompts, query=query_prompt, document=document_prompt),
        seed=seed,
        max_minutes=max_minutes,
        max_tokens=max_tokens,
        max_examples=max_examples,
        without=without,
    )
    trained = train(config, console=console)
    write_all(trained, out)
    gains = measure_gains(trained, leave_out=leave_out, console=console) if evaluate else []
    card = write_card(trained, gains, out)
    console.print(f"best on held-back data: {trained.best.score:.2f} at step {trained.best.step}; see {card}")


def write_all(trained: TrainedAdapter, out: Path) -> None:
    """Write the adapter with its calibration into the folder `out`; its weights are rounded to float16 first."""
    round_weights(trained)
    write_adapter(trained, out)
    config = trained.config
    splits = load_splits(config.task, config.data, without=config.without)
    texts = calibration_texts([split.train for split in splits], seed=config.seed)
    with half_precision():
        ranges = calibrate(texts, embedder(trained.encoder, config.prompts), task=config.task)
    write_calibration(ranges, out)


def calibrate_command(*, data: Path, out: Path, model: str = "minilm", seed: int = 42) -> None:
    """Measure the ranges that int8 and uint8 vectors of a bare model need, on the training texts of all tasks.

    ``embedmux calibrate --data DATA --out DIR`` writes DIR/calibration.safetensors. An adapter gets its own ranges
    when it is trained.

    Parameters
    ----------
    data
        The folder that holds the dataset folders, as for ``embedmux train``.
    out
        Where calibration.safetensors goes.
    model
        A packaged model (minilm), a local directory or a hub id.
    seed
        Chooses the texts.
    """
    tasks = [task for task in KIND_OF_TASK if list_datasets(data, task=task, part="train")]
    if not tasks:
        raise DatasetError(f"data folder {str(data)!r} holds no dataset with a train part; see embedmux train --help")
    texts = calibration_texts([split.train for task in tasks for split in load_splits(task, data)], seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    with half_precision():
        ranges = calibrate(texts, embedder(load_backbone(model), {}), task=None)
    path = write_calibration(ranges, out)
    Console(stderr=True).print(f"wrote {path}: ranges of {len(texts)} texts for {', '.join(ranges)} dimensions")


def _given(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _prompts(default: dict[str, str], *, query: str | None, document: str | None) -> dict[str, str]:
    """The recipe's prompts with those the caller gives in their place; an empty prompt is left out."""
    given = {"query": query, "document": document}
    chosen = default | {role: prompt for role, prompt in given.items() if prompt is not None}
    return {role: prompt for role, prompt in chosen.items() if prompt}
