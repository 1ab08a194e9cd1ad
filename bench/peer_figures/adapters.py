"""What adapters and int8 cost and save on our own engine, the same token ids, MiniLM in bfloat16."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness.data import texts_by_length
from harness.report import Report
from harness.timing import interleaved, median_ratio
from safetensors.torch import save_file

from embedmux.training.evaluate import evaluate
from peer_figures.ours import Ours
from peer_figures.texts import library_tokenizer, long_texts

NUM_TEXTS, ROUNDS, RANK, NUM_ADAPTERS = 256, 15, 16, 64
NAMES = (
    ("merged_over_base", "ratio", ">= 0.97", "mixed four merged adapters, batches of 8192 tokens"),
    ("lowrank_over_base", "ratio", ">= 0.90", "four low-rank adapters, r = 16"),
    ("lowrank64_over_base", "ratio", ">= 0.75", "64 low-rank adapters, r = 16"),
    ("int8_over_bf16", "ratio", ">= 1.3", "long texts, base only"),
    ("int8_cos", "cosine", ">= 0.99", "minimum of texts of 3 to 256 tokens, int8 to fp32"),
    ("int8_ndcg_loss", "points", "<= 0.5", "mean over the retrieval sets, nDCG@10 x100, bf16 less int8"),
)


def adapter_figures(report: Report, data: Path | None, *, is_long: bool) -> None:
    """Adds the figures; without data none has a value."""
    found: dict[str, float | None] = dict.fromkeys(name for name, *_ in NAMES)
    if data is not None:
        found |= _speeds(data, ROUNDS * (3 if is_long else 1))
        found["int8_cos"] = _least_cosine(data)
        found["int8_ndcg_loss"] = _ndcg_loss(data)
    for name, unit, bar, note in NAMES:
        report.add(name, found[name], unit, bar, note)


def _speeds(data: Path, rounds: int) -> dict[str, float]:
    texts = long_texts(data, NUM_TEXTS, library_tokenizer())
    with tempfile.TemporaryDirectory() as root:
        names = [f"a{index}" for index in range(NUM_ADAPTERS)]
        for seed, name in enumerate(names):
            write_adapter(Path(root) / name, seed)
        folder = Path(root)
        with (
            Ours(adapters=folder, is_local=True, dtype="bfloat16") as low,
            Ours(is_local=True, dtype="bfloat16", placement="merged") as merged,
            Ours(is_local=True, dtype="bfloat16", quantize="int8") as int8,
        ):
            tokens = low.tokens(texts)
            four, all_of_them = low.handles(NUM_TEXTS, tuple(names[:4])), low.handles(NUM_TEXTS, tuple(names))
            merged_handles = merged.handles(NUM_TEXTS)
            seconds = interleaved(
                {
                    "base": lambda: low.run(tokens),
                    "low-rank": lambda: low.run(tokens, four),
                    "64 low-rank": lambda: low.run(tokens, all_of_them),
                    "merged base": lambda: merged.run(tokens),
                    "merged": lambda: merged.run(tokens, merged_handles),
                    "int8": lambda: int8.run(tokens),
                },
                rounds=rounds,
                title="adapters and int8",
            )
    return {
        "merged_over_base": median_ratio(seconds["merged base"], seconds["merged"]),
        "lowrank_over_base": median_ratio(seconds["base"], seconds["low-rank"]),
        "lowrank64_over_base": median_ratio(seconds["base"], seconds["64 low-rank"]),
        "int8_over_bf16": median_ratio(seconds["base"], seconds["int8"]),
    }


def write_adapter(folder: Path, seed: int, *, hidden: int = 384, inner: int = 1536, layers: int = 6) -> None:
    """A random adapter of every linear of MiniLM, as PEFT saves it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden)}
    shapes["output.dense"] = (hidden, inner)
    modules = {f"encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    write_peft(folder, modules, RANK, generator)


def write_peft(folder: Path, modules: dict[str, tuple[int, int]], rank: int, generator: torch.Generator) -> None:
    """An adapter folder with random factors for modules of (out, in) features."""
    factors = {}
    for name, (out, width) in modules.items():
        key = f"base_model.model.{name}.lora"
        factors[f"{key}_A.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
        factors[f"{key}_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in modules})
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none",
        "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": "base", "fan_in_fan_out": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _least_cosine(data: Path) -> float:
    tokenizer = library_tokenizer()
    texts = texts_by_length(data, lambda text: {"input_ids": tokenizer.encode(text).ids}, range(3, 257), seed=1)
    texts += ["?", "a", "hello", "x y", "こんにちは", "🙂"]
    with Ours(is_local=True, dtype="float32") as exact, Ours(is_local=True, dtype="bfloat16", quantize="int8") as int8:
        return float((exact.embed(texts) * int8.embed(texts)).sum(1).min())


def _ndcg_loss(data: Path) -> float:
    scores: dict[str, dict[str, float]] = {}
    for quantize in ("none", "int8"):
        with Ours(dtype="bfloat16", quantize=quantize) as ours:

            def embed(texts: list[str], *, task: str | None, role: str | None, ours: Ours = ours) -> np.ndarray:
                return ours.embed(texts)

            scores[quantize] = {score.dataset: score.value for score in evaluate("retrieval", data, embed)}
    losses = {name: value - scores["int8"][name] for name, value in scores["none"].items()}
    for name, loss in losses.items():
        print(
            f"{name}: nDCG@10 {scores['none'][name]:.2f} in bf16, {scores['int8'][name]:.2f} in int8, loss {loss:+.2f}"
        )
    return sum(losses.values()) / len(losses)
