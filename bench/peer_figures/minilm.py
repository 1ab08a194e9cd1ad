"""all-MiniLM-L6-v2 on real texts: texts/s beside the others, and how near the engine comes to bare products."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness.peers import EMBEDDERS, Peer, Peers, open_peers
from harness.report import Report
from harness.timing import interleaved, median_ratio

from embedmux.server.models import default_adapters, find_model
from peer_figures.ours import TASKS, Ours
from peer_figures.plot import draw
from peer_figures.texts import long_texts, short_texts

NUM_SHORT, NUM_LONG, ROUNDS, QUERIES = 1024, 256, 7, 200
HIDDEN, INNER, LAYERS, HEADS, BARE_ROWS = 384, 1536, 6, 12, 2048
FLOPS_A_TOKEN = 2 * LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
NAMES = (
    ("short_over_openvino", ">= 1.3"), ("long_over_openvino", ">= 1.3"), ("int8_over_openvino", ">= 1.8"),
    ("short_over_st", ">= 5"), ("short_over_peft", ">= 7"), ("ceiling_long", ">= 0.78"), ("ceiling_short", ">= 0.65"),
    ("query_over_ort", "<= 0.45"), ("fp32_over_ort", ">= 1.6"),
)  # fmt: skip
NOTES = {
    "short_over_openvino": "texts/s, mixed four tasks, bf16; OpenVINO bf16 without adapters",
    "long_over_openvino": "the same",
    "int8_over_openvino": "mixed four tasks, int8; OpenVINO bf16",
    "short_over_st": "sentence-transformers fp32",
    "short_over_peft": "transformers + PEFT fp32, mixed batch",
    "ceiling_long": "base only, bf16; the same products bare, oneDNN bf16, T = 2048",
    "ceiling_short": "the same",
    "query_over_ort": "p50 time of one short query over onnxruntime's, ours bf16",
    "fp32_over_ort": "texts/s, short, mixed four tasks",
}


def minilm_figures(report: Report, data: Path | None, *, is_long: bool) -> None:
    """Adds what compares on MiniLM; without data, or without the peers, the figures have no value."""
    found: dict[str, float | None] = dict.fromkeys(name for name, _ in NAMES)
    peers = open_peers(EMBEDDERS) if data is not None else None
    if data is not None and peers is not None:
        with peers, tempfile.TemporaryDirectory() as work:
            found |= _measure(peers, data, work, ROUNDS * (3 if is_long else 1))
    for name, bar in NAMES:
        report.add(name, found[name], "ratio", bar, NOTES[name])


def _measure(peers: Peers, data: Path, work: str, rounds: int) -> dict[str, float | None]:
    folder = str(find_model("minilm"))
    adapters = {task: str(default_adapters("minilm") / task) for task in TASKS}  # type: ignore[operator]
    with (
        Ours(dtype="bfloat16") as half, Ours(dtype="float32") as single, Ours(dtype="bfloat16", quantize="int8") as int8
    ):  # fmt: skip
        short = short_texts(data, NUM_SHORT)
        long = long_texts(data, NUM_LONG, half.tokenizer.library)
        seconds: dict[str, dict[str, list[float]]] = {}
        agreed: dict[str, dict[str, bool]] = {}
        for kind, texts in (("short", short), ("long", long)):
            common = {"folder": folder, "texts": texts}
            others = {
                "OpenVINO bf16": peers.build("OpenVino", **common, work=work, precision="bf16", batch_size=64 if kind == "short" else 32),
                "onnxruntime": peers.build("OnnxRuntime", **common, work=work, batch_size=32, heads=HEADS, hidden=HIDDEN),
                "sentence-transformers": peers.build("SentenceTransformers", **common, batch_size=32),
                "PEFT mixed": peers.build("Peft", **common, batch_size=32, adapters=adapters),
            }  # fmt: skip
            mixed = {engine: engine.handles(len(texts)) for engine in (half, single, int8)}
            contenders: dict[str, Callable[[], object]] = {
                "embedmux bf16": lambda t=texts: half.embed(t),
                "embedmux bf16 mixed": lambda t=texts, m=mixed: half.embed(t, m[half]),
                "embedmux int8 mixed": lambda t=texts, m=mixed: int8.embed(t, m[int8]),
                "embedmux fp32 mixed": lambda t=texts, m=mixed: single.embed(t, m[single]),
                "bare products": bare_products(),
                **{name: peer.seconds for name, peer in others.items()},
            }
            seconds[kind] = interleaved(contenders, rounds=rounds, title=f"{kind} texts")
            plain, adapted = single.embed(texts), single.embed(texts, mixed[single])
            agreed[kind] = {
                name: agrees(name, peer, adapted if "PEFT" in name else plain) for name, peer in others.items()
            }
        num_tokens = {
            kind: sum(len(t.ids) for t in half.tokens(texts)) for kind, texts in (("short", short), ("long", long))
        }
        query = _query(
            half,
            peers.build(
                "OnnxRuntime", folder=folder, texts=short[:1], work=work, batch_size=32, heads=HEADS, hidden=HIDDEN
            ),
            short[0],
        )
    counts = {"short": NUM_SHORT, "long": NUM_LONG}
    draw(
        {
            kind: {
                name: counts[kind] / statistics.median(times) for name, times in each.items() if name != "bare products"
            }
            for kind, each in seconds.items()
        }
    )

    def over(kind: str, ours: str, peer: str) -> float | None:
        return median_ratio(seconds[kind][peer], seconds[kind][ours]) if agreed[kind][peer] else None

    def ceiling(kind: str) -> float:
        flops = num_tokens[kind] * FLOPS_A_TOKEN
        bare = 2 * BARE_ROWS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
        # The share is the ratio of flops a second: ours over all that a text takes, theirs over the products alone.
        return flops / bare * median_ratio(seconds[kind]["bare products"], seconds[kind]["embedmux bf16"])

    return {
        "short_over_openvino": over("short", "embedmux bf16 mixed", "OpenVINO bf16"),
        "long_over_openvino": over("long", "embedmux bf16 mixed", "OpenVINO bf16"),
        "int8_over_openvino": over("long", "embedmux int8 mixed", "OpenVINO bf16"),
        "short_over_st": over("short", "embedmux bf16 mixed", "sentence-transformers"),
        "short_over_peft": over("short", "embedmux bf16 mixed", "PEFT mixed"),
        "ceiling_long": ceiling("long"), "ceiling_short": ceiling("short"), "query_over_ort": query,
        "fp32_over_ort": over("short", "embedmux fp32 mixed", "onnxruntime"),
    }  # fmt: skip


def bare_products() -> Callable[[], None]:
    """One layer's four products at T = 2048 as oneDNN's prepacked bfloat16 linears compute them."""
    ops = torch.ops.mkldnn
    shapes = [(HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)]
    calls = []
    for inner, columns in shapes:
        x, weight, bias = (torch.randn(*size).bfloat16() for size in ((BARE_ROWS, inner), (columns, inner), (columns,)))
        calls.append((x, ops._reorder_linear_weight(weight, BARE_ROWS), bias))

    def run() -> None:
        for x, packed, bias in calls:
            ops._linear_pointwise(x, packed, bias, "none", [], "")

    return run


def agrees(name: str, peer: Peer, wanted: np.ndarray) -> bool:
    """Whether the peer's vectors of its last run are ours in float32, by the precision it computes in."""
    least = 0.99 if "bf16" in name else 0.9999
    cosine = float((peer.result()[0] * wanted).sum(1).min())
    if cosine < least:
        print(f"{name} does not agree with us: a cosine of {cosine:.5f}, at least {least} is wanted; not compared")
    return cosine >= least


def _query(ours: Ours, peer: Peer, text: str) -> float:
    """Median seconds of one query, ours over the peer's, in turn."""
    handle = ours.handles(1)[0]

    async def times() -> tuple[list[float], list[float]]:
        mine, others = [], []
        for turn in range(QUERIES + 20):
            other = peer.seconds()
            started = time.perf_counter()
            await ours.one(text, handle)
            if turn >= 20:
                mine.append(time.perf_counter() - started)
                others.append(other)
        return mine, others

    mine, others = asyncio.run(times())
    print(f"one query: {statistics.median(mine) * 1e3:.2f} ms, onnxruntime {statistics.median(others) * 1e3:.2f} ms")
    return statistics.median(mine) / statistics.median(others)
