"""Merged adapters: the bits of a checkpoint with the adapter in its weights, beside base and low-rank rows."""

import asyncio
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from end_to_end_adapters import RECIPES
from end_to_end_support import Served, texts_of
from safetensors.torch import load_file, save_file

from embedmux.client.texts import Text
from embedmux.server.adapters.directory import read_adapter
from embedmux.server.backbones.layers import LoraLinear
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.errors import AdapterConflict, AdapterRejected, InvalidConfig, Overloaded
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Tokens, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

Serve = Callable[..., AbstractContextManager[Served]]
FULL = OutputSpec(384, Encoding.FLOAT32)


@pytest.fixture(scope="module", params=[("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8")], ids="-".join)
def config(request: pytest.FixtureRequest, adapter_root: Path) -> EngineConfig:
    dtype, quantize = request.param
    models = (ModelConfig(adapters=adapter_root),)
    return EngineConfig(models, dtype=dtype, quantize=quantize, max_batch_tokens=1 << 20)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Iterator[LocalEngine]:
    """Every adapter twice: low-rank, and merged as NAME-merged."""
    local = LocalEngine(config)
    for name in RECIPES:
        asyncio.run(local.load_adapter(0, name, f"{name}-merged", "merged"))
    yield local
    local.close()


@pytest.fixture(scope="module")
def tokens(model_folder: Path) -> list[Tokens]:
    tokenizer = Tokenizer(model_folder, read_contract(model_folder))
    found = tokenizer.encode_now([Frame("", text, "") for text in texts_of(40, seed=4)], Truncate.NONE)
    tokenizer.close()
    return [text for text in found if isinstance(text, Tokens)]


async def vectors(engine: LocalEngine, tokens: list[Tokens], handles: list[int]) -> np.ndarray:
    data, errors = await engine.embed(0, tokens, handles, FULL)
    assert not errors
    return np.frombuffer(data, "<f4").reshape(len(tokens), 384)


def handle(engine: LocalEngine, name: str) -> int:
    return engine.adapters_of(0)[name].handle


async def test_a_text_has_the_same_bits_alone_and_among_merged_low_rank_and_base_rows(
    engine: LocalEngine, tokens: list[Tokens]
) -> None:
    chosen = random.Random(5)
    handles = [BASE_MODEL, *(info.handle for info in engine.adapters_of(0).values())]
    items = [(text, handle) for text in tokens[:12] for handle in handles] + [
        (text, chosen.choice(handles)) for text in tokens[12:]
    ]
    alone = [(await vectors(engine, [text], [handle])).tobytes() for text, handle in items]
    for _ in range(15):
        picked = chosen.sample(range(len(items)), round(2 ** chosen.uniform(1, 7)))
        found = await vectors(engine, [items[i][0] for i in picked], [items[i][1] for i in picked])
        assert [row.tobytes() for row in found] == [alone[i] for i in picked]


async def test_merged_rows_have_the_bits_of_a_checkpoint_with_the_adapter_in_its_weights(
    engine: LocalEngine,
    config: EngineConfig,
    tokens: list[Tokens],
    adapter_root: Path,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    name = "classification"
    targets = engine.runtime.models[0].targets
    adapter = read_adapter(adapter_root / name, targets, root=adapter_root)
    folder = tmp_path / "merged"
    shutil.copytree(model_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for target, update in adapter.targets.items():
        tensors[f"{target}.weight"] = tensors[f"{target}.weight"] + update.scale * (update.b @ update.a)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    whole = LocalEngine(EngineConfig((ModelConfig(str(folder)),), dtype=config.dtype, quantize=config.quantize))
    wanted = await vectors(whole, tokens, [BASE_MODEL] * len(tokens))
    whole.close()
    found = await vectors(engine, tokens, [handle(engine, f"{name}-merged")] * len(tokens))
    assert found.tobytes() == wanted.tobytes()


async def test_merged_rows_are_near_the_low_rank_ones(
    engine: LocalEngine, config: EngineConfig, tokens: list[Tokens]
) -> None:
    # float32 differs in the order of sums; in bfloat16 W + BA is rounded once more, and int8 takes codes of another W.
    least = {"float32": 1 - 1e-5, "bfloat16": 0.998}[config.dtype] if config.quantize == "none" else 0.98
    for name in RECIPES:
        merged = await vectors(engine, tokens, [handle(engine, f"{name}-merged")] * len(tokens))
        low_rank = await vectors(engine, tokens, [handle(engine, name)] * len(tokens))
        base = await vectors(engine, tokens, [BASE_MODEL] * len(tokens))
        assert (merged * low_rank).sum(1).min() > least, name
        assert (merged * base).sum(1).min() < (merged * low_rank).sum(1).min(), name


async def test_an_id_keeps_its_placement_until_it_is_unloaded(engine: LocalEngine, tokens: list[Tokens]) -> None:
    arena = engine.runtime.models[0].registry._arena
    before, merged = arena.num_used_bytes, engine.runtime.models[0]._merged
    assert merged is not None
    slots = set(merged.slots)
    info = await engine.load_adapter(0, "retrieval", "twice", "merged")
    assert info.placement == "merged"
    assert info.num_bytes == arena.num_used_bytes - before > 1e6
    assert await engine.load_adapter(0, "retrieval", "twice", "merged") == info
    with pytest.raises(AdapterConflict, match="and placement 'merged', not 'low-rank'; unload it first"):
        await engine.load_adapter(0, "retrieval", "twice", "low-rank")
    wanted = await vectors(engine, tokens, [info.handle] * len(tokens))
    await engine.unload_adapter(0, "twice")
    assert arena.num_used_bytes == before
    assert merged.slots == slots
    again = await engine.load_adapter(0, "retrieval", "twice", "low-rank")
    assert again.placement == "low-rank"
    assert (await vectors(engine, tokens, [again.handle] * len(tokens))).tobytes() != wanted.tobytes()
    await engine.unload_adapter(0, "twice")


async def test_merged_copies_count_against_the_adapters_memory(adapter_root: Path) -> None:
    models = (ModelConfig(adapters=adapter_root),)
    local = LocalEngine(EngineConfig(models, dtype="bfloat16", loads_adapters=False, max_adapter_bytes=30_000_000))
    await local.load_adapter(0, "retrieval", None, "merged")  # 21 MB
    with pytest.raises(Overloaded, match=r"needs \d+ bytes in one piece, \d+ of 30000000 are taken; unload an adapter"):
        await local.load_adapter(0, "classification", None, "merged")
    await local.load_adapter(0, "classification", None, "low-rank")
    local.close()
    small = LocalEngine(EngineConfig(models, dtype="bfloat16", loads_adapters=False, max_adapter_bytes=10_000_000))
    with pytest.raises(AdapterRejected, match=r"the limit for all is 10000000; raise it \(--max-adapter-bytes\)"):
        await small.load_adapter(0, "retrieval", None, "merged")
    small.close()


async def test_no_copy_is_made_that_could_not_be_placed(adapter_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = (ModelConfig(adapters=adapter_root),)
    local = LocalEngine(EngineConfig(models, dtype="bfloat16", loads_adapters=False, max_adapter_bytes=30_000_000))
    await local.load_adapter(0, "retrieval", None, "merged")
    asked: list[object] = []
    monkeypatch.setattr(LoraLinear, "lay_out", lambda *arguments: asked.append(arguments))
    with pytest.raises(Overloaded):
        await local.load_adapter(0, "classification", None, "merged")
    assert not asked
    local.close()


async def test_a_merged_adapter_keeps_its_weights_until_its_last_lease_is_back(
    engine: LocalEngine, tokens: list[Tokens]
) -> None:
    model = engine.runtime.models[0]
    info = await engine.load_adapter(0, "retrieval", "leaving", "merged")
    slot = model.registry.lease(info.handle)
    used = model.registry._arena.num_used_bytes
    await engine.unload_adapter(0, "leaving")
    assert model.registry._arena.num_used_bytes == used
    assert model._merged is not None and slot in model._merged.slots
    other = await engine.load_adapter(0, "classification", "leaving", "merged")
    assert model.registry.lease(other.handle) != slot
    model.registry.release(other.handle)
    kept = [linear for linear in model._merged._loaded.values() if slot in linear.merged]
    assert len(kept) == 24
    model.registry.release(info.handle)
    assert slot not in model._merged.slots and not any(slot in linear.merged for linear in kept)
    # The slot's next adapter is low-rank, and none of what stood there before is left.
    again = await engine.load_adapter(0, "clustering", "returning", "low-rank")
    assert model.registry.lease(again.handle) == slot
    model.registry.release(again.handle)
    found = await vectors(engine, tokens, [again.handle] * len(tokens))
    wanted = await vectors(engine, tokens, [handle(engine, "clustering")] * len(tokens))
    assert found.tobytes() == wanted.tobytes()
    for name in ("leaving", "returning"):
        await engine.unload_adapter(0, name)


async def test_weights_that_changed_on_the_disk_are_not_merged_with(
    adapter_root: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    local = LocalEngine(EngineConfig((ModelConfig(str(folder), adapter_root),), loads_adapters=False))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.attention.self.query.weight"))
    tensors[name] = 3 * tensors[name]
    (folder / "model.safetensors").unlink()  # the engine's own copy of the file may still be mapped
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterRejected, match=r"cannot be read again: .* files have changed since it was loaded"):
        await local.load_adapter(0, "retrieval", None, "merged")
    assert (await local.load_adapter(0, "retrieval", None, "low-rank")).placement == "low-rank"
    (folder / "model.safetensors").unlink()
    with pytest.raises(AdapterRejected, match=r"cannot be read again: .* has no model\.safetensors"):
        await local.load_adapter(0, "classification", None, "merged")
    local.close()


def test_only_linears_that_an_adapter_changes_are_copied(engine: LocalEngine) -> None:
    model = engine.runtime.models[0]
    assert model._merged is not None
    loaded = model._merged._loaded
    slot = model.registry.lease(handle(engine, "text-matching-merged"))  # query and value
    model.registry.release(handle(engine, "text-matching-merged"))
    copied = {name for name, linear in loaded.items() if slot in linear.merged}
    assert copied == {f"encoder.layer.{i}.attention.self.qkv" for i in range(6)}


@pytest.mark.parametrize("option", [{"placement": "merged"}, {"quantize": "int8"}])
def test_what_the_gpu_does_not_serve_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig, match="is served on the CPU only; leave it out, or use --device cpu"):
        EngineConfig(device="cuda", **option)


def test_a_server_merges_what_it_is_told_to(serve: Serve) -> None:
    with serve("--placement", "merged", "--dtype", "bfloat16") as served, served.client() as client:
        assert {info.placement for info in client.adapters()} == {"merged"}
        with pytest.raises(AdapterConflict, match="placement 'merged', not 'low-rank'"):
            client.load_adapter("retrieval", placement="low-rank")
        assert client.load_adapter("spare/one", id="spare", placement="low-rank").placement == "low-rank"
        found = client.embed([Text("river", adapter="text-matching"), Text("river", adapter="spare"), Text("river")])
        assert len({row.tobytes() for row in found.vectors}) == 3
