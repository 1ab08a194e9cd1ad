"""Where the time of a batch goes: the steps of a layer one by one, the layer in one call, and what stands around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from embedmux.kernels import ops
from embedmux.kernels.post_norm_layers import cases
from peer_figures.ours import Ours
from peer_figures.texts import library_tokenizer, long_texts, short_texts

TURNS, LAYERS = 15, 6


def where_the_time_goes(data: Path) -> None:
    """Prints microseconds per layer of one batch of short and of long texts, bfloat16."""
    texts = {"short": short_texts(data, 300), "long": long_texts(data, 36, library_tokenizer())}
    columns = {kind: _steps(each) for kind, each in texts.items()}
    table = Table(title="where the time goes, microseconds a layer, one batch, bfloat16", title_justify="left")
    for column in ("step", *columns):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step in next(iter(columns.values())):
        table.add_row(step, *(f"{found[step]:.0f}" for found in columns.values()))
    Console(width=100).print(table)


def _steps(texts: list[str]) -> dict[str, float]:
    with Ours(is_local=True, dtype="bfloat16") as ours:
        tokens = ours.tokens(texts)
        lengths = [len(each.ids) for each in tokens]
        whole = _median(lambda: ours.run(tokens))
        tokeniser = _median(lambda: ours.tokens(texts))
    base = _arguments(lengths, [-1] * len(lengths))
    mixed = _arguments(lengths, [4 * index // len(lengths) for index in range(len(lengths))])
    x, offsets, heads, scale, eps, _, weights, biases, norms, arena, adapters, rows, slots, packed = base
    hidden, inner = x.size(1), weights[2].size(0)
    wide = torch.randn(x.size(0), inner).to(x.dtype)
    q, k, v = torch.randn(x.size(0), 3, heads, hidden // heads).to(x.dtype).unbind(1)

    def product(index: int, slices: list[int], activation: str) -> float:
        rows_in = wide if index == 3 else x
        return _median(
            lambda: ops.lora_matmul(
                rows_in, weights[index], biases[index], arena, adapters[index], rows, slots, slices, activation,
                packed[index],
            )
        )  # fmt: skip

    found = {
        "query, key, value": product(0, [hidden] * 3, "none"),
        "attention": _median(lambda: ops.attention(q, k, v, offsets, False, -1, scale)),
        "attention output": product(1, [hidden], "none"),
        "two norms": 2 * _median(lambda: ops.add_layer_norm(x, x, norms[0], norms[1], eps)),
        "up, GELU": product(2, [inner], "gelu"),
        "down": product(3, [hidden], "none"),
    }
    found["one by one"] = sum(found.values())
    found["in one call"] = _median(lambda: ops.post_norm_layers(*base))
    found["four adapters, r = 16, add"] = _median(lambda: ops.post_norm_layers(*mixed)) - found["in one call"]
    found["tokeniser (beside it, another process)"] = tokeniser / LAYERS
    found["embedding, pooling, dispatch"] = whole / LAYERS - found["in one call"]
    return found


def _arguments(lengths: list[int], slots: list[int]) -> cases.Arguments:
    sequences = tuple(zip(lengths, slots, strict=True))
    case = cases.Case("", torch.bfloat16, 384, 1536, 12, sequences, ranks=(16,) * 4)
    found = cases.make_inputs(case, seed=1)
    return (*found[:13], [ops.pack_weight(weight) for weight in found[6]])


def _median(run: Callable[[], object]) -> float:
    """Microseconds."""
    seconds = []
    for turn in range(TURNS + 2):
        started = time.perf_counter()
        run()
        if turn >= 2:
            seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds)
