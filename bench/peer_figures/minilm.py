"""all-MiniLM-L6-v2 on real texts: texts/s beside the others, and how near the engine comes to bare products."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness.peers import EMBEDDERS, Peer, Peers, open_peers
from harness.report import Report
from harness.timing import interleaved, median_ratio

from embedmux.server.models import default_adapters, find_model
from peer_figures.ours import TASKS, Ours
from peer_figures.plot import draw
from peer_figures.texts import library_tokenizer, long_texts, short_texts

NUM_SHORT, NUM_LONG, ROUNDS = 1024, 256, 7
BARE_PASSES = 60  # about as long as our run: a short one would be measured while threads wake
QUERY_TURNS, QUERIES_A_TURN, PAUSE_S = 15, 20, 0.1  # the pause lets the other's waiting threads fall asleep
BARE = "bare products"
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
    texts = {"short": short_texts(data, NUM_SHORT), "long": long_texts(data, NUM_LONG, library_tokenizer())}
    found = {}
    for kind, each in texts.items():
        others = _others(peers, each, work, batch_size=64 if kind == "short" else 32)
        found[kind] = _compare(kind, each, others, rounds)
    draw({kind: compared.rates() for kind, compared in found.items()})
    short, long = found["short"], found["long"]
    query = peers.build("OnnxRuntime", **common(texts["short"][:1], work), batch_size=1, heads=HEADS, hidden=HIDDEN)
    return {
        "short_over_openvino": short.over("embedmux bf16 mixed", "OpenVINO bf16"),
        "long_over_openvino": long.over("embedmux bf16 mixed", "OpenVINO bf16"),
        "int8_over_openvino": long.over("embedmux int8 mixed", "OpenVINO bf16"),
        "short_over_st": short.over("embedmux bf16 mixed", "sentence-transformers"),
        "short_over_peft": short.over("embedmux bf16 mixed", "PEFT mixed"),
        "ceiling_long": long.ceiling(),
        "ceiling_short": short.ceiling(),
        "query_over_ort": _query(query, texts["short"][0]),
        "fp32_over_ort": short.over("embedmux fp32 mixed", "onnxruntime"),
    }


@dataclass(frozen=True, slots=True)
class Compared:
    """Seconds of everybody in every round over the same texts, and whose vectors agree with ours."""

    num_texts: int
    num_tokens: int
    seconds: dict[str, list[float]]
    agreed: dict[str, bool]

    def rates(self) -> dict[str, float]:
        """Texts a second."""
        return {name: self.num_texts / statistics.median(times) for name, times in self.seconds.items() if name != BARE}

    def over(self, ours: str, peer: str) -> float | None:
        """Our texts/s over a peer's; None where the vectors do not agree."""
        return median_ratio(self.seconds[peer], self.seconds[ours]) if self.agreed[peer] else None

    def ceiling(self) -> float:
        """Flops of the linears a second, over all the time that a text takes, as a share of the bare products'."""
        flops = self.num_tokens * FLOPS_A_TOKEN
        bare = BARE_PASSES * BARE_ROWS * FLOPS_A_TOKEN / LAYERS
        return flops / bare * median_ratio(self.seconds[BARE], self.seconds["embedmux bf16"])


def _compare(kind: str, texts: list[str], others: dict[str, Peer], rounds: int) -> Compared:
    with (
        Ours(dtype="bfloat16") as half,
        Ours(dtype="float32") as single,
        Ours(dtype="bfloat16", quantize="int8") as int8,
    ):
        handles = {engine: engine.handles(len(texts)) for engine in (half, single, int8)}
        contenders: dict[str, Callable[[], object]] = {
            "embedmux bf16": lambda: half.embed(texts),
            "embedmux bf16 mixed": lambda: half.embed(texts, handles[half]),
            "embedmux int8 mixed": lambda: int8.embed(texts, handles[int8]),
            "embedmux fp32 mixed": lambda: single.embed(texts, handles[single]),
            BARE: bare_products(),
            **{name: peer.seconds for name, peer in others.items()},
        }
        seconds = interleaved(contenders, rounds=rounds, title=f"{kind} texts")
        plain, adapted = single.embed(texts), single.embed(texts, handles[single])
        agreed = {name: agrees(name, peer, adapted if "PEFT" in name else plain) for name, peer in others.items()}
        num_tokens = sum(len(each.ids) for each in half.tokens(texts))
    return Compared(len(texts), num_tokens, seconds, agreed)


def common(texts: list[str], work: str) -> dict[str, object]:
    """What the contenders on the exported model are built from."""
    return {"folder": str(find_model("minilm")), "texts": texts, "work": work}


def _others(peers: Peers, texts: list[str], work: str, *, batch_size: int) -> dict[str, Peer]:
    folder, root = str(find_model("minilm")), default_adapters("minilm")
    assert root is not None
    adapters = {task: str(root / task) for task in TASKS}
    return {
        "OpenVINO bf16": peers.build("OpenVino", **common(texts, work), precision="bf16", batch_size=batch_size),
        "onnxruntime": peers.build("OnnxRuntime", **common(texts, work), batch_size=32, heads=HEADS, hidden=HIDDEN),
        "sentence-transformers": peers.build("SentenceTransformers", folder=folder, texts=texts, batch_size=32),
        "PEFT mixed": peers.build("Peft", folder=folder, texts=texts, batch_size=32, adapters=adapters),
    }


def bare_products() -> Callable[[], None]:
    """One layer's four products at T = 2048 as oneDNN's prepacked bfloat16 linears compute them."""
    ops = torch.ops.mkldnn
    shapes = [(HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)]
    calls = []
    for inner, columns in shapes:
        x, weight, bias = (torch.randn(*size).bfloat16() for size in ((BARE_ROWS, inner), (columns, inner), (columns,)))
        calls.append((x, ops._reorder_linear_weight(weight, BARE_ROWS), bias))

    def run() -> None:
        for _ in range(BARE_PASSES):
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


def _query(peer: Peer, text: str) -> float:
    """Median seconds of one query, ours in this process over the peer's, in turns of some queries each."""
    mine: list[float] = []
    others: list[float] = []
    with Ours(dtype="bfloat16", is_local=True) as ours:
        handle = ours.handles(1)[0]

        async def ask() -> None:
            for _ in range(QUERIES_A_TURN):
                started = time.perf_counter()
                await ours.one(text, handle)
                mine.append(time.perf_counter() - started)

        for _ in range(QUERY_TURNS):
            time.sleep(PAUSE_S)
            others += [peer.seconds() for _ in range(QUERIES_A_TURN)]
            time.sleep(PAUSE_S)
            ours.runner.run(ask())
    ratio = statistics.median(mine) / statistics.median(others)
    print(f"one query: {statistics.median(mine) * 1e3:.2f} ms, onnxruntime {statistics.median(others) * 1e3:.2f} ms")
    return ratio
