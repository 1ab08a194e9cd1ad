"""Whole tiny backbones with four adapters and base rows through the Triton kernels, in Triton's interpreter.

Dispatch on CPU tensors picks the C++ kernels, so for the length of a test the Triton launchers take their place. The
batch goes through the staged buffers of a bucket, as it does on a GPU, and is compared with the CPU engine's own. A
BERT pools all its tokens; a Qwen3 keeps the last row of its last layer and shares a prefix between texts.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from embedmux.kernels import ops
from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.backbones import find_family
from embedmux.server.backbones.layers import LoraLinear
from embedmux.server.backbones.shape import targets_of
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.batching.graphs import GraphedBackbone
from embedmux.server.batching.pack import PLAIN, Packing, Piece, pack, piece_of, to_device
from embedmux.server.batching.prefixes import PrefixCache, make_pool
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.heads.build import Heads
from embedmux.server.outputs import encode_rows
from embedmux.server.packed import LowRankTables
from embedmux.server.records import (
    ANY_TERMS,
    BASE_MODEL,
    Adapter,
    Calibration,
    Encoding,
    EngineJob,
    LowRank,
    OutputSpec,
    Pooling,
    Sequence,
)

CPU = torch.device("cpu")
LENGTHS, RANKS = (7, 1, 20, 13, 2, 17, 5, 9), (16, 1, 7, 24)
SLOTS = (0, BASE_MODEL, 3, 1, BASE_MODEL, 2, 3, 1)
HIDDEN, HEAD_SIZE, SHARED = 48, 16, 9
POOL_ROWS = 40


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
                if op.has_triton or op.is_composed:  # what is composed calls the others, as it does on CUDA
                    launcher = op.triton if op.has_triton else op.reference
                    library.impl(op.name, launcher, "CPU", allow_override=True)
            yield
    finally:
        library._destroy()


def bert() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HIDDEN // HEAD_SIZE,
        intermediate_size=100, max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    return transformers.BertModel(config)


def qwen3() -> transformers.PreTrainedModel:
    config = transformers.Qwen3Config(
        vocab_size=100, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=HEAD_SIZE, intermediate_size=96, max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    return transformers.Qwen3Model(config)


MODELS = {"bert": (bert, "bert"), "qwen3": (qwen3, "decoder")}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with random weights of a trained model's size."""
    found = tmp_path_factory.mktemp("tiny") / request.param
    found.mkdir()
    torch.manual_seed(int(np.random.default_rng().integers(1 << 31)))
    model = MODELS[request.param][0]()
    save_file(dict(model.state_dict()), found / "model.safetensors")
    (found / "config.json").write_text(json.dumps(model.config.to_dict()))
    return found


def random_adapter(name: str, targets: dict[str, tuple[int, int]], rank: int) -> Adapter:
    factors = {
        target: LowRank(torch.randn(rank, inner) / inner**0.5, torch.randn(outer, rank) / rank**0.5, 0.5)
        for target, (inner, outer) in targets.items()
    }
    return Adapter(name, name, name, None, {}, factors, {}, rank, 0)


class Engine:
    """The parts of the engine between a plan and its bytes, with four adapters loaded."""

    def __init__(self, folder: Path, dtype: torch.dtype, *, has_plain_weights: bool = False) -> None:
        family = find_family(MODELS[folder.name][1])
        shape = family.read_shape(ModelFolder(folder).config())
        arena = AdapterArena(shape.linears, max_slots=8, max_bytes=1 << 22, dtype=dtype, device=CPU)
        low_rank = LowRankTables(arena.data, arena.tables)
        with pytest.MonkeyPatch.context() as patch:
            if has_plain_weights:  # the GPU's kernels read plain weights
                patch.setattr(ops, "HAS_EXTENSION", False)
            checkpoint = Checkpoint(folder, prefixes=family.PREFIXES, device=CPU)
            self.backbone = family.Backbone(shape, checkpoint, low_rank=low_rank, dtype=dtype)
        torch.manual_seed(3)
        for number, rank in enumerate(RANKS):
            assert arena.place(random_adapter(f"adapter-{number}", targets_of(shape.linears), rank)) == number
        self.pooling, self.packing = Pooling.MEAN, PLAIN
        self.prefixes = None
        if shape.is_causal:
            pool = make_pool(
                num_layers=shape.num_layers, num_rows=POOL_ROWS, num_kv_heads=shape.num_kv_heads,
                head_size=shape.head_size, dtype=dtype, device=CPU,
            )  # fmt: skip
            for part in pool:
                part.zero_()
            self.pooling, self.packing = Pooling.LAST, Packing(Pooling.LAST, pool)
            self.prefixes = PrefixCache(POOL_ROWS)

    def split(self, texts: list[Sequence]) -> tuple[list[Piece], list[int]]:
        """As LoadedModel does it."""
        wholes = [piece_of(text) for text in texts]
        return (wholes, list(range(len(texts)))) if self.prefixes is None else self.prefixes.split(texts, wholes)


def make_texts(seed: int) -> list[Sequence]:
    """Texts sorted by slot; those of slot 3 and of the base model begin alike."""
    random = np.random.default_rng(seed)
    prefix = random.integers(1, 100, SHARED).astype(np.int32)
    order = sorted(range(len(SLOTS)), key=lambda place: SLOTS[place])
    slots = [SLOTS[place] for place in order]
    own = [random.integers(1, 100, LENGTHS[place]).astype(np.int32) for place in order]
    shared = [SHARED if slot in (3, BASE_MODEL) else 0 for slot in slots]
    ids = [np.concatenate([prefix[:length], text]) for length, text in zip(shared, own, strict=True)]
    job = EngineJob(
        id=1, token_ids=np.concatenate(ids), offsets=np.cumsum([0, *map(len, ids)], dtype=np.int32),
        adapters=np.array(slots, dtype=np.int32), output=OutputSpec(HIDDEN, Encoding.FLOAT32), terms=ANY_TERMS,
        out=memoryview(bytearray()), shared=np.array(shared, np.int32), second=np.zeros(len(ids), np.int32),
    )  # fmt: skip
    return [Sequence(job, i, len(ids[i]), slot, 0.0) for i, slot in enumerate(slots)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_batch_agrees_with_the_cpu_engine(folder: Path, dtype: torch.dtype) -> None:
    cpu, gpu = Engine(folder, dtype), Engine(folder, dtype, has_plain_weights=True)
    texts = make_texts(seed=1)
    calibration = Calibration("c", 40, torch.stack([torch.full((40,), -0.5), torch.full((40,), 0.5)]))
    kinds = [(OutputSpec(HIDDEN, Encoding.FLOAT32), None), (OutputSpec(40, Encoding.INT8), calibration)]
    specs = [kinds[i % 3 == 2] for i in range(len(LENGTHS))]
    ids = [piece_of(text).token_ids for text in texts]

    pieces, places = cpu.split(texts)
    assert len(pieces) == len(texts) + (2 if cpu.prefixes else 0)
    expected = cpu.backbone(to_device(pack(pieces, cpu.packing), cpu.packing, CPU))
    expected_rows = encode_rows(expected, places, ids, specs, cpu.pooling, Heads())

    with torch.inference_mode(), through_triton():
        graphed = GraphedBackbone(
            gpu.backbone, max_tokens=256, max_texts=16, max_segments=9, device=CPU, packing=gpu.packing
        )
        pieces, places = gpu.split(texts)
        states, _ = graphed(pack(pieces, gpu.packing))
        rows = encode_rows(states, places, ids, specs, gpu.pooling, Heads())

    # What stands in the bucket behind the batch belongs to nobody.
    assert len(states.hidden) > len(expected.hidden)
    found, tolerance = states.hidden[: len(expected.hidden)], 1e-4 if dtype == torch.float32 else 0.08
    torch.testing.assert_close(found.float(), expected.hidden.float(), rtol=tolerance, atol=tolerance)
    cosine = torch.nn.functional.cosine_similarity(found.double(), expected.hidden.double(), dim=1)
    assert cosine.min() > (0.999999 if dtype == torch.float32 else 0.9995)
    for (spec, _), row, wanted in zip(specs, rows, expected_rows, strict=True):
        assert isinstance(row, np.ndarray) and isinstance(wanted, np.ndarray)
        if spec.encoding is Encoding.FLOAT32:
            difference = np.abs(row.view(np.float32) - wanted.view(np.float32)).max()
            assert difference < tolerance
        else:
            assert np.abs(row.view(np.int8).astype(int) - wanted.view(np.int8)).max() <= (1 if tolerance < 1e-3 else 6)


def test_the_stand_in_for_a_packed_weight_takes_no_memory(folder: Path) -> None:
    engine, plain = Engine(folder, torch.float32), Engine(folder, torch.float32, has_plain_weights=True)
    found: list[LoraLinear] = [engine.backbone.layers[0].qkv, plain.backbone.layers[0].qkv]  # type: ignore[attr-defined]
    assert [linear.base[1] is None for linear in found] == [False, True]
    assert [linear.base[0].untyped_storage().nbytes() for linear in found] == [4, 4 * found[1].base[0].numel()]
