"""Trains one LoRA adapter for one task on a frozen backbone, and keeps the best checkpoint on held-back data.

The loop is plain: draw a batch, embed its columns, take the task's loss, step. Every `check_every` steps the task's
own metric is taken on what was held back; the best weights so far are kept, and `patience` checks without a gain end
the run. Order of the journey: load_splits -> mine_split -> add_adapter -> _run -> TrainedAdapter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embedmux.training.backbone import embedder, load_backbone
from embedmux.training.config import TrainingConfig
from embedmux.training.examples import ExampleBatch, batches
from embedmux.training.lora import add_adapter, copy_weights, trainable
from embedmux.training.losses import drift, task_loss
from embedmux.training.negatives import Mined, mine_split
from embedmux.training.split import Split, load_splits
from embedmux.training.validate import held_back_score, shrink_held_back

WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
CHUNK_SIZE = 64  # texts in one pass


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the held-back data: after `step` steps the task's metric was `score` (x100)."""

    step: int
    score: float


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A backbone with its adapter in place (best checkpoint), and how it came about. `checks[0]` is before training."""

    config: TrainingConfig
    encoder: SentenceTransformer
    adapter: PeftModel
    checks: tuple[Check, ...]
    minutes: float
    datasets: tuple[str, ...]

    @property
    def best(self) -> Check:
        """The check whose weights were kept."""
        return max(self.checks, key=lambda check: check.score)


def train(config: TrainingConfig, *, console: Console | None = None) -> TrainedAdapter:
    """Train the adapter that `config` describes; the same config, data and thread count give the same weights."""
    started = time.monotonic()
    console = console or Console(stderr=True)
    torch.manual_seed(config.seed)
    encoder = load_backbone(config.model)
    encoder.max_seq_length = min(config.max_tokens, encoder.max_seq_length or config.max_tokens)
    splits = load_splits(config.task, config.data, without=config.without)
    console.print(f"{config.task}: {', '.join(split.train.name for split in splits)}")
    with half_precision():
        bare = embedder(encoder, {})
        mined = {
            split.train.name: mine_split(split, bare, max_queries=config.max_examples, seed=config.seed)
            for split in splits
        }
    splits = [shrink_held_back(split, negatives=mined[split.train.name], seed=config.seed) for split in splits]
    adapter = add_adapter(encoder, rank=config.rank, alpha=config.alpha)
    weights = trainable(adapter)
    _make_fast(encoder)
    deadline = started + 60 * config.max_minutes
    checks = _run(config, encoder, adapter, splits, mined, console=console, deadline=deadline)
    encoder = load_backbone(config.model)
    adapter = add_adapter(encoder, rank=config.rank, alpha=config.alpha)
    copy_weights(weights, trainable(adapter))
    return TrainedAdapter(
        config=config,
        encoder=encoder,
        adapter=adapter,
        checks=tuple(checks),
        minutes=(time.monotonic() - started) / 60,
        datasets=tuple(split.train.name for split in splits),
    )


def _make_fast(encoder: SentenceTransformer) -> None:
    """Prepare a copy of the backbone that only trains: frozen linear layers in bfloat16, plain attention.

    Autocast would convert the frozen weights anew in every pass, and on CPUs the backward pass of fused attention
    takes longer than all the rest.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            layer.to(torch.bfloat16)
    encoder[0].auto_model.set_attn_implementation("eager")


def _run(
    config: TrainingConfig,
    encoder: SentenceTransformer,
    adapter: PeftModel,
    splits: Sequence[Split],
    mined: dict[str, Mined],
    *,
    console: Console,
    deadline: float,
) -> list[Check]:
    """The loop. Leaves the best weights in `adapter` and returns every look at the held-back data."""
    weights = trainable(adapter)
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    loss_function = task_loss(config.task, encoder)
    embed = embedder(encoder, config.prompts)
    draw = batches(
        [split.train for split in splits],
        batch_size=config.batch_size,
        seed=config.seed,
        max_examples=config.max_examples,
        negatives=mined,
    )
    with half_precision():
        checks = [Check(0, held_back_score(config.task, splits, embed))]
    console.print(f"held back, before training: {checks[0].score:.2f}")
    best, kept = checks[0], [weight.detach().clone() for weight in weights]
    with _progress(console) as progress:
        bar = progress.add_task(config.task, total=config.steps, loss=float("nan"))
        for step in range(1, config.steps + 1):
            batch = next(draw)
            with half_precision():
                columns = embed_columns(encoder, batch, config.prompts)
                loss = loss_function(columns, torch.tensor(batch.labels))
                if config.anchor:
                    with torch.no_grad(), adapter.disable_adapter():
                        frozen = embed_columns(encoder, batch, config.prompts)
                    loss = loss + config.anchor * drift(columns, frozen)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1, loss=loss.item())
            late = time.monotonic() > deadline
            if step % config.check_every and step != config.steps and not late:
                continue
            with half_precision():
                checks.append(Check(step, held_back_score(config.task, splits, embed)))
            console.print(f"held back, after step {step}: {checks[-1].score:.2f} (loss {loss.item():.3f})")
            if checks[-1].score > best.score:
                best, kept = checks[-1], [weight.detach().clone() for weight in weights]
            if late or step - best.step >= config.patience * config.check_every:
                break
    copy_weights(kept, weights)
    return checks


def embed_columns(encoder: SentenceTransformer, batch: ExampleBatch, prompts: dict[str, str]) -> list[Tensor]:
    """The vectors [rows, D] of each column, with gradients, each text behind the prompt of the column's role.

    All columns run together, sorted by length in small chunks: mixed lengths would make most of a batch padding.
    """
    texts = [
        prompts.get(role or "", "") + text
        for column, role in zip(batch.columns, batch.roles, strict=True)
        for text in column
    ]
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    chunks = [
        encoder(encoder.preprocess([texts[row] for row in order[start : start + CHUNK_SIZE]]))["sentence_embedding"]
        for start in range(0, len(order), CHUNK_SIZE)
    ]
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(len(order))
    return list(torch.split(torch.cat(chunks)[place], [len(column) for column in batch.columns]))


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at `step`: a straight rise over the first tenth, then a straight fall to zero."""
    rise = max(1, round(steps * WARMUP_SHARE))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def half_precision() -> torch.autocast:
    """bfloat16 matrix products, several times faster on CPUs that have them; the weights stay float32."""
    return torch.autocast("cpu", torch.bfloat16)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )
