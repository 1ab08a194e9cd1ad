"""A whole tiny BERT with four adapters and base rows through the Triton kernels, in Triton's interpreter.

Dispatch on CPU tensors picks the C++ kernels, so for the length of a test the Triton launchers take their place. The
batch goes through the staged buffers of a bucket, as it does on a GPU, and is compared with the CPU engine's own.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from embedmux.kernels import ops
from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.backbones import load_backbone
from embedmux.server.backbones.bert import Bert
from embedmux.server.backbones.spec import load_spec
from embedmux.server.batching.graphs import GraphedBackbone
from embedmux.server.batching.pack import Layout, order, pack
from embedmux.server.outputs import encode_rows
from embedmux.server.records import (
    BASE_MODEL,
    Adapter,
    Calibration,
    Encoding,
    EngineJob,
    LowRank,
    LowRankTables,
    OutputSpec,
    Pooling,
    Sequence,
)

CPU = torch.device("cpu")
LENGTHS, RANKS = (7, 1, 20, 13, 2, 17, 5, 9), (16, 1, 7, 24)
SLOTS = (0, BASE_MODEL, 3, 1, BASE_MODEL, 2, 3, 1)
HIDDEN = 48


@contextlib.contextmanager
def through_triton() -> Iterator[None]:
    """Inside, torch's dispatcher answers CPU tensors with the Triton launchers."""
    library = torch.library.Library("embedmux", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # torch warns that a kernel is overridden, which is the point; numpy, below the interpreter, that the rows
            # behind a batch, which hold whatever the memory held, overflow in a norm.
            warnings.simplefilter("ignore")
            for op in ops.ALL:
                if op.has_triton:
                    library.impl(op.name, op.triton, "CPU", allow_override=True)
            yield
    finally:
        library._destroy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights of a trained model's size."""
    found = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=100, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=3, intermediate_size=100,
        max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(int(np.random.default_rng().integers(1 << 31)))
    save_file(dict(BertModel(config).state_dict()), found / "model.safetensors")
    (found / "config.json").write_text(json.dumps(config.to_dict()))
    return found


def random_adapter(name: str, targets: dict[str, tuple[int, int]], rank: int) -> Adapter:
    factors = {
        target: LowRank(torch.randn(rank, inner) / inner**0.5, torch.randn(outer, rank) / rank**0.5, 0.5)
        for target, (inner, outer) in targets.items()
    }
    return Adapter(name, name, name, None, {}, factors, {}, rank, 0)


class Engine:
    """The parts of the engine between a plan and its bytes, with four adapters loaded."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.spec = load_spec(folder)
        arena = AdapterArena(self.spec.linears, max_slots=8, max_bytes=1 << 22, dtype=dtype, device=CPU)
        low_rank = LowRankTables(arena.data, arena.tables)
        self.backbone: Bert = load_backbone(self.spec, folder, low_rank=low_rank, dtype=dtype, device=CPU)
        for number, rank in enumerate(RANKS):
            assert arena.place(random_adapter(f"adapter-{number}", self.spec.targets, rank)) == number

    def unpacked(self) -> None:
        """The GPU's kernels read plain weights."""
        for layer in self.backbone.layers:
            for linear in (layer.qkv, layer.attention_out, layer.up, layer.down):
                linear.packed = None


def make_layout(seed: int) -> Layout:
    offsets = np.cumsum([0, *LENGTHS], dtype=np.int32)
    job = EngineJob(
        id=1, token_ids=np.random.default_rng(seed).integers(1, 100, offsets[-1]).astype(np.int32), offsets=offsets,
        adapters=np.array(SLOTS, dtype=np.int32), output=OutputSpec(HIDDEN, Encoding.FLOAT32), deadline=None,
        out=memoryview(bytearray()),
    )  # fmt: skip
    texts = zip(LENGTHS, SLOTS, strict=True)
    return pack(order([Sequence(job, i, n, slot, 0.0, None) for i, (n, slot) in enumerate(texts)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_batch_agrees_with_the_cpu_engine(folder: Path, dtype: torch.dtype) -> None:
    engine, layout = Engine(folder, dtype), make_layout(seed=1)
    calibration = Calibration("c", 40, torch.stack([torch.full((40,), -0.5), torch.full((40,), 0.5)]))
    kinds = [(OutputSpec(HIDDEN, Encoding.FLOAT32), None), (OutputSpec(40, Encoding.INT8), calibration)]
    specs = [kinds[i % 3 == 2] for i in range(len(LENGTHS))]

    batch = layout.to(CPU)
    expected = engine.backbone(batch)
    expected_rows = encode_rows(expected, batch.offsets, specs, Pooling.MEAN)

    engine.unpacked()
    with torch.inference_mode(), through_triton():
        graphed = GraphedBackbone(engine.backbone, max_tokens=128, max_texts=16, max_segments=9, device=CPU)
        states, staged = graphed(layout)
        rows = encode_rows(states, staged.offsets[: len(LENGTHS) + 1], specs, Pooling.MEAN)

    assert len(states) == 96 > len(expected)  # the bucket's rows behind the batch belong to nobody
    found, tolerance = states[: len(expected)], 1e-4 if dtype == torch.float32 else 0.08
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)
    cosine = torch.nn.functional.cosine_similarity(found.double(), expected.double(), dim=1)
    assert cosine.min() > (0.999999 if dtype == torch.float32 else 0.9995)
    for (spec, _), row, wanted in zip(specs, rows, expected_rows, strict=True):
        if spec.encoding is Encoding.FLOAT32:
            difference = np.abs(row.view(np.float32) - wanted.view(np.float32)).max()
            assert difference < tolerance
        else:
            assert np.abs(row.view(np.int8).astype(int) - wanted.view(np.int8)).max() <= (1 if tolerance < 1e-3 else 6)
