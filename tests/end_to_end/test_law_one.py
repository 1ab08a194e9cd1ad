"""Law 1: a text has the same bits alone and in any batch, in any order, whichever adapters come and go meanwhile."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end_adapters import RECIPES, SPARES
from end_to_end_support import ODD_TEXTS, Served, texts_of

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Tokens, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

FULL = OutputSpec(384, Encoding.FLOAT32)
NUM_BATCHES = 50
Item = tuple[list[int], int]  # token ids, adapter handle


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, adapter_root: Path) -> Iterator[LocalEngine]:
    """An engine whose batch takes everything that waits, so one call is one batch."""
    if request.param == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no fast bfloat16")
    models = (ModelConfig(adapters=adapter_root),)
    config = EngineConfig(models, dtype=request.param, max_batch_tokens=1 << 20)
    local = LocalEngine(config)
    yield local
    local.close()


@pytest.fixture(scope="module")
def sequences(model_folder: Path) -> list[list[int]]:
    """Token ids of 100 texts of 2 to 200 tokens."""
    tokenizer = Tokenizer(model_folder, read_contract(model_folder))
    frames = [Frame("", text, "") for text in (*ODD_TEXTS, *texts_of(88, seed=1))]
    found = tokenizer.encode_now(frames, Truncate.NONE)
    tokenizer.close()
    return [tokens.ids for tokens in found]


def pool_of(engine: LocalEngine, sequences: list[list[int]]) -> list[Item]:
    """Every text under one adapter or none, and some under all."""
    handles = [BASE_MODEL, *(engine.adapters_of(0)[name].handle for name in RECIPES)]
    everywhere = [(ids, handle) for ids in sequences[:20] for handle in handles]
    return everywhere + [(ids, handles[i % len(handles)]) for i, ids in enumerate(sequences[20:])]


async def rows_of(engine: LocalEngine, items: list[Item], output: OutputSpec = FULL) -> list[bytes]:
    tokens = [Tokens(ids, len(ids)) for ids, _ in items]
    data, errors = await engine.embed(0, tokens, [handle for _, handle in items], output)
    assert not errors
    width = output.encoding.row_bytes(output.dimensions)
    return [data[start : start + width] for start in range(0, len(data), width)]


async def come_and_go(engine: LocalEngine, number: int) -> None:
    """Loads a spare adapter and unloads another, while a batch runs."""
    await engine.load_adapter(0, SPARES[number % 3], f"spare-{number}")
    if number > 1:
        await engine.unload_adapter(0, f"spare-{number - 2}")


async def test_a_text_has_the_same_bits_alone_and_in_fifty_batches(
    engine: LocalEngine, sequences: list[list[int]]
) -> None:
    generator = random.Random(2)
    pool = pool_of(engine, sequences)
    alone = [(await rows_of(engine, [item]))[0] for item in pool]
    assert len(set(alone[:100])) == 100, "adapters must turn vectors, or this test shows nothing"
    for number in range(NUM_BATCHES):
        size = round(2 ** generator.uniform(1, 7))
        chosen = generator.sample(range(len(pool)), size)
        rows, _ = await asyncio.gather(rows_of(engine, [pool[i] for i in chosen]), come_and_go(engine, number))
        different = [index for index, row in zip(chosen, rows, strict=True) if row != alone[index]]
        assert not different, f"{len(different)} of {size} texts have other bits than alone"


async def test_sizes_and_encodings_in_one_batch_do_not_change_each_other(
    engine: LocalEngine, sequences: list[list[int]]
) -> None:
    retrieval = engine.adapters_of(0)["retrieval"].handle
    outputs = [
        FULL,
        OutputSpec(128, Encoding.INT8),
        OutputSpec(384, Encoding.UINT8),
        OutputSpec(50, Encoding.UBINARY),
        OutputSpec(7, Encoding.FLOAT16),
    ]
    items = [(ids, retrieval) for ids in sequences[20:36]]
    alone = [[(await rows_of(engine, [item], output))[0] for item in items] for output in outputs]
    # The device thread takes the first job at once; the others wait for it and share the next batch.
    together = await asyncio.gather(*(rows_of(engine, items, output) for output in outputs))
    assert together == alone


def test_concurrent_clients_get_the_bits_of_a_lone_one(each_server: Served) -> None:
    texts = [*ODD_TEXTS, *texts_of(48, seed=3, longest=100)]
    tasks = [None, *RECIPES]
    items = [Text(text, task=tasks[i % 5], role="query" if i % 5 else None) for i, text in enumerate(texts)]
    with each_server.client() as client:
        alone = np.concatenate([client.embed(item).vectors for item in items])

        def mix(seed: int, shared: Client) -> int:
            generator = random.Random(seed)
            wrong = 0
            for _ in range(4):
                chosen = generator.sample(range(len(items)), generator.randint(1, 24))
                found = shared.embed([items[index] for index in chosen])
                wrong += int((found.vectors.view(np.uint32) != alone[chosen].view(np.uint32)).any(1).sum())
            return wrong

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda seed: mix(seed, client), range(8))) == [0] * 8
