"""A decoder of Qwen3-0.6B's shape with random weights, in bfloat16: mixed adapters beside PEFT and vLLM."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import torch
from harness.peers import EMBEDDERS, VLLM, Environment, Peer, open_peers
from harness.report import Report
from harness.timing import interleaved, median_ratio
from model_families import ALL

from embedmux.server.records import Tokens
from peer_figures.adapters import write_peft
from peer_figures.ours import Ours

NAME, LAYERS, RANK, ROUNDS = "qwen3-embedding-0.6b", 28, 32, 3
TEXTS, TOKENS, VLLM_TEXTS, VLLM_TOKENS = 16, 64, 8, 32
ADAPTERS = ("a", "b", "c", "d")
MERGED_BYTES = 8 << 30
NUM_SHUFFLED, LONGEST = 192, 512
NAMES = (
    ("qwen_lowrank_over_peft", ">= 2.0", "tokens/s, mixed four adapters r = 32"),
    ("qwen_merged_over_peft", ">= 2.2", "the same, merged"),
    ("qwen_over_vllm", ">= 20", "the same, low-rank; vLLM's mixed adapters on the CPU"),
    ("shuffled_over_sorted", ">= 0.95", "texts of 1 to 512 tokens, random order over sorted, cut to 4 layers"),
)


def qwen_figures(report: Report, *, is_long: bool) -> None:
    """Adds the figures; they need no data."""
    rounds = ROUNDS * (3 if is_long else 1)
    with tempfile.TemporaryDirectory() as root:
        folder, adapters = Path(root) / NAME, Path(root) / "adapters"
        next(family for family in ALL if family.name == NAME).build(folder, "full", 3)
        write_adapters(folder, adapters)
        found = _beside_peers(folder, adapters, rounds)
        cut_layers(folder, 4)
        found["shuffled_over_sorted"] = _shuffled(folder, 5 * rounds)
    for name, bar, note in NAMES:
        report.add(name, found[name], "ratio", bar, note)


def write_adapters(folder: Path, root: Path) -> None:
    """Four random adapters of every linear."""
    config = json.loads((folder / "config.json").read_text())
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    modules = {f"layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    for seed, name in enumerate(ADAPTERS):
        write_peft(root / name, modules, RANK, torch.Generator().manual_seed(seed))


def cut_layers(folder: Path, layers: int) -> None:
    """Leaves the first layers of a checkpoint."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    kept = {
        name: tensor for name, tensor in load_file(path).items()
        if ".".join(name.split(".")[:2]) not in {f"layers.{i}" for i in range(layers, LAYERS)}
    }  # fmt: skip
    save_file(kept, path, {"format": "pt"})


def token_ids(texts: int, tokens: int) -> list[list[int]]:
    """Random ids of texts of one length."""
    chosen = random.Random(7)
    return [[chosen.randrange(1000, 4000) for _ in range(tokens)] for _ in range(texts)]


def _beside_peers(folder: Path, adapters: Path, rounds: int) -> dict[str, float | None]:
    paths = {name: str(adapters / name) for name in ADAPTERS}
    ids = token_ids(TEXTS, TOKENS)
    found: dict[str, float | None] = dict.fromkeys(name for name, *_ in NAMES)
    options = {"dtype": "bfloat16", "adapters": adapters, "is_local": True, "max_adapter_bytes": MERGED_BYTES}
    with Ours(str(folder), **options, placement="merged") as merged, Ours(str(folder), **options) as low:
        rows = [Tokens(text, len(text)) for text in ids]
        handles = {engine: engine.handles(TEXTS, ADAPTERS) for engine in (low, merged)}
        peft = _peer(EMBEDDERS, "PeftTokens", folder=str(folder), ids=ids, adapters=paths)
        if peft is not None:
            with peft.peers:
                seconds = interleaved(
                    {
                        "low": lambda: low.run(rows, handles[low]),
                        "merged": lambda: merged.run(rows, handles[merged]),
                        "peft": peft.seconds,
                    },
                    rounds=rounds,
                    title="Qwen3-0.6B shape, PEFT",
                )
                cosine = float((low.run(rows, handles[low]) * peft.result()[0]).sum(1).min())
            print(f"least cosine of PEFT's vectors in bfloat16 to ours: {cosine:.4f}")
            if cosine > 0.98:
                found["qwen_lowrank_over_peft"] = median_ratio(seconds["peft"], seconds["low"])
                found["qwen_merged_over_peft"] = median_ratio(seconds["peft"], seconds["merged"])
        few = token_ids(VLLM_TEXTS, VLLM_TOKENS)
        vllm = _peer(VLLM, "VllmTokens", folder=str(folder), ids=few, adapters=paths, rank=RANK)
        if vllm is not None:
            few_rows, few_handles = [Tokens(text, len(text)) for text in few], low.handles(VLLM_TEXTS, ADAPTERS)
            with vllm.peers:
                seconds = interleaved(
                    {"low": lambda: low.run(few_rows, few_handles), "vllm": vllm.seconds},
                    rounds=2,
                    title="Qwen3-0.6B shape, vLLM",
                )
                cosine = float((low.run(few_rows, few_handles) * vllm.result()[0]).sum(1).min())
            print(f"least cosine of vLLM's vectors in bfloat16 to ours: {cosine:.4f}")
            found["qwen_over_vllm"] = median_ratio(seconds["vllm"], seconds["low"]) if cosine > 0.98 else None
    return found


def _peer(environment: Environment, contender: str, **options: object) -> Peer | None:
    """The contender, or None with the reason printed where it cannot be had."""
    peers = open_peers(environment)
    if peers is None:
        return None
    try:
        return peers.build(contender, **options)
    except RuntimeError as error:
        print(f"no {contender}: {error}")
        return None


def _shuffled(folder: Path, rounds: int) -> float:
    """Tokens/s of texts in random order over sorted, in requests of 16 texts."""
    chosen = random.Random(9)
    lengths = [chosen.randint(1, LONGEST) for _ in range(NUM_SHUFFLED)]
    texts = [[chosen.randrange(1000, 4000) for _ in range(length)] for length in lengths]
    rows = [Tokens(text, len(text)) for text in texts]
    with Ours(str(folder), is_local=True, dtype="bfloat16", max_batch_tokens=2048) as ours:
        in_order = sorted(rows, key=lambda text: len(text.ids))
        seconds = interleaved(
            {"shuffled": lambda: ours.run_in_requests(rows, 16), "sorted": lambda: ours.run_in_requests(in_order, 16)},
            rounds=rounds,
            title="shuffled over sorted",
        )
    return median_ratio(seconds["sorted"], seconds["shuffled"])
