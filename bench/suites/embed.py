"""The main job: are the vectors right, what do mixed adapters cost, how fast is it served, do the adapters help."""

import asyncio
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness.data import real_texts, texts_by_length
from harness.report import Report
from harness.servers import serving
from harness.timing import interleaved, median_ratio
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.models import default_adapters, find_model
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer
from embedmux.training.evaluate import METRICS, evaluate

TASKS = ("retrieval", "text-matching", "classification", "clustering")
ROUNDS = 7
NUM_TEXTS = 512
TEXTS_A_REQUEST = 32
IN_FLIGHT = 8
MAX_TOKENS = 256


def measure(data: Path | None, *, is_long: bool) -> Report:
    """Every figure of the embed benchmark; ``is_long`` changes nothing here."""
    report = Report("embed")
    report.groups["adapter_gain"] = ([gain_name(task) for task in TASKS], 3)
    cosines = cosine_figures(data) if data else dict.fromkeys(("base_fp32", "base_bf16", "adapters_fp32"))
    report.add("cos_base_fp32", cosines["base_fp32"], "cosine", ">= 0.99999", "minimum of 500 texts, 1 to 256 tokens")
    report.add("cos_base_bf16", cosines["base_bf16"], "cosine", ">= 0.9995", "minimum, same texts")
    report.add("cos_adapters_fp32", cosines["adapters_fp32"], "cosine", ">= 0.99999", "minimum, one mixed batch")
    report.add("mixed_over_base", mixed_over_base(data) if data else None, "ratio", ">= 0.85", "tokens/s, bf16")
    fp32, bf16 = served_over_st(data) if data else (None, None)
    report.add("served_over_st_fp32", fp32, "ratio", ">= 2.5", "texts/s, mixed tasks over gRPC in bf16")
    report.add("served_over_st_bf16", bf16, "ratio", ">= 1.1", "same texts")
    for task, gain in adapter_gains(data).items() if data else ((task, None) for task in TASKS):
        report.add(gain_name(task), gain, "points", "> 0", f"{METRICS[task]} x100; three of four must gain")
    seconds, megabytes = demo()
    report.add("demo_seconds", seconds, "s", "printed", f"fresh clone; environment of {megabytes:.0f} MB")
    return report


def gain_name(task: str) -> str:
    """The figure's name for a task."""
    return f"adapter_gain_{task.replace('-', '_')}"


def cosine_figures(data: Path) -> dict[str, float]:
    """Minimum cosines of served vectors to the reference implementations in float32."""
    folder = find_model("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(itertools.islice(itertools.cycle(texts_by_length(data, tokenizer, range(3, 257), seed=1)), 254))
    texts += texts_by_length(data, tokenizer, range(3, 249), seed=2)
    st = SentenceTransformer(str(folder), device="cpu")
    wanted = st.encode(texts, batch_size=16, normalize_embeddings=True)
    mixed = [Text(text, task=task, role=role) for text, (task, role) in zip(texts, itertools.cycle(instructions()))]
    wanted_mixed = with_peft(folder, tokenizer, mixed)
    found: dict[str, float] = {}
    for dtype, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        with serving("--dtype", dtype) as address, Client(address, batch_size=500) as client:
            found[f"base_{name}"] = min_cosine(client.embed(texts, truncate="end").vectors, wanted)
            if name == "fp32":
                served = client.embed(mixed, truncate="end").vectors
                found["adapters_fp32"] = min_cosine(served, wanted_mixed)
    return found


def instructions() -> list[tuple[str | None, str | None]]:
    """Four tasks and the bare model, in turn; retrieval by both roles."""
    return [("retrieval", "query"), ("text-matching", None), ("classification", None), ("clustering", None),
            ("retrieval", "document"), (None, None)]  # fmt: skip


def with_peft(folder: Path, tokenizer: object, texts: list[Text]) -> np.ndarray:
    """The same texts through transformers + PEFT in float32, one by one with their adapter, mean-pooled."""
    adapters = default_adapters("minilm")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapters / TASKS[0], adapter_name=TASKS[0])
    for task in TASKS[1:]:
        model.load_adapter(adapters / task, adapter_name=task)
    model.eval()
    prompts = {"query": "query: ", "document": "document: "}
    vectors = []
    for batch in chunks(texts, 16):
        encoded = tokenizer(
            [prompts.get(text.role or "", "") + text.text for text in batch],
            return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS,
        )  # fmt: skip
        with torch.inference_mode():
            states = model(**encoded, adapter_names=[text.task or "__base__" for text in batch]).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        vectors.append(((states * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(vectors)


def chunks(texts: list, size: int) -> list[list]:
    """Runs of ``size`` texts."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def min_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """The smallest cosine between rows, in float64."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((found * wanted).sum(1) / norms).min())


def mixed_over_base(data: Path) -> float:
    """Throughput of four adapters in every batch over the bare model, same tokens, engine alone, bfloat16."""
    config = EngineConfig((ModelConfig("minilm", default_adapters("minilm")),), dtype="bfloat16")
    engine = LocalEngine(config)
    folder = find_model("minilm")
    tokenizer = Tokenizer(folder, replace(read_contract(folder), max_tokens=MAX_TOKENS))
    frames = [Frame("", text) for text in real_texts(data, NUM_TEXTS, seed=3)]
    tokens = tokenizer.encode_now(frames, Truncate.END)
    handles = [engine.adapters_of(0)[task].handle for task in TASKS]
    mixed = [handle for handle, _ in zip(itertools.cycle(handles), tokens)]
    output = OutputSpec(engine.models[0].dimensions, Encoding.FLOAT32)

    def run(adapters: list[int]) -> None:
        asyncio.run(engine.embed(0, tokens, adapters, output))

    seconds = interleaved(
        {"base": lambda: run([BASE_MODEL] * len(tokens)), "mixed": lambda: run(mixed)},
        rounds=3 * ROUNDS, title="mixed over base",
    )  # fmt: skip
    engine.close()
    return median_ratio(seconds["base"], seconds["mixed"])


def served_over_st(data: Path) -> tuple[float, float]:
    """Served mixed-task texts/s in bfloat16 over sentence-transformers' encode in float32 and bfloat16."""
    folder = str(find_model("minilm"))
    texts = real_texts(data, NUM_TEXTS, seed=4)
    plain = SentenceTransformer(folder, device="cpu")
    half = SentenceTransformer(folder, device="cpu").bfloat16()
    requests = chunks([Text(text, task=task, role=role) for text, (task, role) in
                       zip(texts, itertools.cycle(instructions()[:5]))], TEXTS_A_REQUEST)  # fmt: skip
    with serving("--dtype", "bfloat16") as address, Client(address) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        seconds = interleaved(
            {
                "served": lambda: list(pool.map(lambda batch: client.embed(batch, truncate="end"), requests)),
                "fp32": lambda: plain.encode(texts, batch_size=32),
                "bf16": lambda: half.encode(texts, batch_size=32),
            },
            rounds=ROUNDS,
            title="served over sentence-transformers",
        )
    for name, times in seconds.items():
        print(f"{name}: {len(texts) / statistics.median(times):.0f} texts/s")
    return median_ratio(seconds["fp32"], seconds["served"]), median_ratio(seconds["bf16"], seconds["served"])


def adapter_gains(data: Path) -> dict[str, float]:
    """Mean gain over the bare model on the test parts, points x100, everything through the server."""
    gains = {}
    with serving("--dtype", "bfloat16") as address, Client(address, batch_size=256, timeout=600) as client:

        def bare(texts: list[str], *, task: str | None, role: str | None) -> np.ndarray:
            return client.embed(texts, truncate="end").vectors

        def adapted(texts: list[str], *, task: str | None, role: str | None) -> np.ndarray:
            return client.embed(texts, task=task, role=role, truncate="end").vectors

        for task in TASKS:
            before, after = evaluate(task, data, bare), evaluate(task, data, adapted)
            for old, new in zip(before, after, strict=True):
                print(f"{task} {old.dataset}: {old.value:.2f} -> {new.value:.2f} {old.metric}", flush=True)
            gains[task] = statistics.mean(new.value - old.value for old, new in zip(before, after, strict=True))
    return gains


def demo() -> tuple[float, float]:
    """Seconds of ``make demo`` in a fresh clone, and megabytes of the environment it made."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "MAKE"))
        }
        started = time.perf_counter()
        subprocess.run(["make", "demo"], cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in (clone / ".venv").rglob("*") if path.is_file())
    return seconds, size / 1e6
