"""The card of an adapter: what it is, what it was trained on, how to train it again, what it gains, where it ends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedmux.training.backbone import PUBLIC_NAMES, public_name
from embedmux.training.datasets import describe
from embedmux.training.lora import TARGETS
from embedmux.training.report import Gain
from embedmux.training.train import TrainedAdapter

LOSSES = {
    "retrieval": "InfoNCE over in-batch negatives and one mined hard negative per query (temperature 0.05)",
    "text-matching": "CoSENT over the scored pairs (temperature 0.05)",
    "classification": "supervised contrastive loss (temperature 0.1), each batch from one dataset",
    "clustering": "supervised contrastive loss (temperature 0.1), each batch from one dataset, plus a pull towards the "
    "cosines of the bare model",
}
HELD_BACK = {
    "retrieval": "a tenth of the training queries",
    "text-matching": "the dev part",
    "classification": "a tenth of the training texts",
    "clustering": "a fifth of the training labels",
}
PROTOCOLS = {
    "retrieval": "nDCG@10, exact cosine search over the whole corpus; interval: paired bootstrap over the queries",
    "text-matching": "Spearman correlation of cosine with the gold score",
    "classification": "accuracy of logistic regression on 8 examples per label (amazon_counterfactual_en: 32), "
    "mean of 10 draws",
    "clustering": "V-measure of mini-batch k-means, mean of 10 bootstraps, over labels that training did not see",
}


def write_card(trained: TrainedAdapter, gains: Sequence[Gain], folder: Path) -> Path:
    """Write README.md into the adapter's folder and return its path. With no gains the table is left out."""
    path = folder / "README.md"
    sections = [_head(trained), _sources(trained), _training(trained)]
    if gains:
        sections.append(_table(trained, gains))
    sections.append(_limits(trained, gains))
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _head(trained: TrainedAdapter) -> str:
    config, base = trained.config, public_name(trained.config.model)
    prompts = ", ".join(f"{role} `{prompt}`" for role, prompt in config.prompts.items()) or "none"
    return "\n".join(
        (
            f"# {config.task} adapter for {base}",
            "",
            f"- Base model: `{base}`, frozen",
            f"- Form: LoRA, rank {config.rank}, alpha {config.alpha:g}, "
            f"on {', '.join(_targets(trained))} of every layer; float16",
            f"- Prompts: {prompts}",
            "- `calibration.safetensors`: ranges of each dimension for int8 and uint8, from training texts",
        )
    )


def _sources(trained: TrainedAdapter) -> str:
    lines = ["## Data", "", "Trained on the train parts of:", ""]
    for name in trained.datasets:
        facts = describe(trained.config.data / name)
        licence, citation = facts.get("licence", "not stated"), facts.get("citation", "none given")
        lines.append(f"- **{name}**: {str(licence).rstrip('.')}. {citation}")
    return "\n".join(lines)


def _training(trained: TrainedAdapter) -> str:
    config, best = trained.config, trained.best
    checks = " ".join(f"{check.step}: {check.score:.2f}" for check in trained.checks)
    return "\n".join(
        (
            "## Training",
            "",
            "```",
            _command(trained),
            "```",
            "",
            f"Loss: {LOSSES[config.task]}. AdamW, learning rate {config.learning_rate:g} with warm-up and decay, "
            f"batches of {config.batch_size}, texts cut at {config.max_tokens} tokens, bfloat16 matrix products, "
            f"seed {config.seed}{_cap(trained)}. "
            f"The weights of step {best.step} of {config.steps} were kept: they were best on {HELD_BACK[config.task]}, "
            f"held back. {trained.minutes:.0f} minutes of wall time{_time_limit(trained)}.",
            "",
            f"Held-back score by step: {checks}.",
        )
    )


def _cap(trained: TrainedAdapter) -> str:
    limit = trained.config.max_examples
    return f", at most {limit} pairs of each dataset" if trained.config.task == "retrieval" else ""


def _time_limit(trained: TrainedAdapter) -> str:
    """Said only where the clock ended the run: it then cannot be repeated to the bit."""
    config, last = trained.config, trained.checks[-1].step
    out_of_patience = last - trained.best.step >= config.patience * config.check_every
    if last == config.steps or out_of_patience:
        return ""
    return f", which a limit on wall time ended at step {last}; the command above runs on and gives other weights"


def _command(trained: TrainedAdapter) -> str:
    config = trained.config
    model = config.model if config.model in PUBLIC_NAMES else public_name(config.model)
    without = "".join(f" --without {name}" for name in config.without)
    return (
        f"embedmux train --task {config.task} --model {model} --data DATA --out OUT --rank {config.rank} "
        f"--alpha {config.alpha:g} \\\n    --steps {config.steps} --batch-size {config.batch_size} "
        f"--learning-rate {config.learning_rate:g} --anchor {config.anchor:g} --check-every {config.check_every} "
        f"--seed {config.seed}{without}"
    )


def _table(trained: TrainedAdapter, gains: Sequence[Gain]) -> str:
    metric, has_left_out = gains[0].before.metric, any(gain.left_out for gain in gains)
    head = ["test set", "bare model", "adapter", "gain"] + ["gain if left out of training"] * has_left_out
    rows = [
        [gain.before.dataset, f"{gain.before.value:.2f}", f"{gain.after.value:.2f}", _points(gain)]
        + [_left_out(gain)] * has_left_out
        for gain in gains
    ]
    means = [np.mean([gain.before.value for gain in gains]), np.mean([gain.after.value for gain in gains])]
    mean_left_out = [gain.left_out.value - gain.before.value for gain in gains if gain.left_out]
    rows.append(
        ["mean", f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[1] - means[0]:+.2f}"]
        + ([f"{np.mean(mean_left_out):+.2f}"] if has_left_out else [])
    )
    lines = [f"## {metric} (x100)", "", "| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    note = f"{PROTOCOLS[trained.config.task]}. The bare model gets no prompt; both with bfloat16 matrix products."
    return "\n".join([*lines, "", note])


def _points(gain: Gain) -> str:
    interval = gain.interval
    return f"{gain.points:+.2f}" + (f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "")


def _left_out(gain: Gain) -> str:
    return f"{gain.left_out.value - gain.before.value:+.2f}" if gain.left_out else "–"


def _limits(trained: TrainedAdapter, gains: Sequence[Gain]) -> str:
    return "\n".join(
        (
            "## Limits",
            "",
            "- English only, as the base model and the data are." if _is_english(trained) else "- As the base model.",
            f"- Texts were cut at {trained.config.max_tokens} tokens in training; longer ones work, and were measured "
            "at the base model's own limit.",
            "- Vectors of this adapter compare with each other only, not with those of the bare model or another task.",
            "- On sources unlike the training data expect the gain of the last column, not that of the one before."
            if any(gain.left_out for gain in gains)
            else "- What a source outside the training data gains was not measured: try your own texts first.",
        )
    )


def _is_english(trained: TrainedAdapter) -> bool:
    return all(describe(trained.config.data / name).get("language", "en") == "en" for name in trained.datasets)


def _targets(trained: TrainedAdapter) -> tuple[str, ...]:
    return TARGETS[trained.encoder[0].auto_model.config.model_type]
