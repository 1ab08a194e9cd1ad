"""What quantised search finds of the exact answer: recall@10 on real documents, embedded by the default model.

Queries stay float32 where a kind allows it; codes are calibrated on the documents. "rescored" kinds take the best 40
and order them by float32 query x stored int8 row.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness.data import read_jsonl
from harness.report import Report
from sklearn.cluster import KMeans

from embedmux.kernels import ops
from embedmux.kernels.similarity.descale import fold_ranges, quantize_queries
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import EngineConfig
from embedmux.server.models import find_model
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

NAMES = ("recall_int8", "recall_binary", "recall_binary_rescored", "recall_pq_rescored", "recall_asym")
SETS = ("medquad", "tatqa_dev", "mbpp", "cacm", "cisi")
MAX_DOCUMENTS, MAX_QUERIES, MAX_TOKENS = 10_000, 1_000, 128
TOP, FACTOR = 10, 4
PARTS, CENTROIDS = 48, 16


def recall_figures(report: Report, data: Path | None) -> None:
    """The share of the ten exact nearest documents that each kind finds, as a mean over queries."""
    if data is None:
        for name in NAMES:
            report.add(name, None, "recall@10", "printed", "needs DATA=DIR")
        return
    documents, queries = vectors_of(data)
    exact = ops.similarity_topk(queries, documents, "dot", TOP)[1]
    print(f"recall@10 of {len(queries)} queries in {len(documents)} documents of {', '.join(SETS)}", flush=True)
    for name, found in answers(queries, documents).items():
        hits = (exact[:, :, None] == found[:, None, :]).any(2).float().mean()
        report.add(name, float(hits), "recall@10", "printed")


def answers(queries: torch.Tensor, documents: torch.Tensor) -> dict[str, torch.Tensor]:
    """Figure -> ids [Q, 10]."""
    ranges = torch.stack([documents.amin(0), documents.amax(0)])
    codes, bits = (ops.quantize_rows(documents, kind, ranges) for kind in ("int8", "ubinary"))
    wide = FACTOR * TOP

    def rescored(candidates: torch.Tensor) -> torch.Tensor:
        folded, offset = fold_ranges(queries, ranges)
        scores = ops.rescore(folded, codes, candidates, "float_int8", None, offset)
        return candidates.gather(1, scores.topk(TOP).indices)

    coded, scale, offset = quantize_queries(queries, ranges)
    hamming = ops.similarity_topk(ops.quantize_rows(queries, "ubinary", None), bits, "hamming", wide)[1]
    codebooks = train_codebooks(documents)
    product = ops.pq_topk(ops.pq_tables(queries, codebooks), ops.quantize_pq(documents, codebooks), wide, None)[1]
    return {
        "recall_int8": ops.similarity_topk(coded, codes, "int8", TOP, scale, offset)[1],
        "recall_binary": hamming[:, :TOP],
        "recall_binary_rescored": rescored(hamming),
        "recall_pq_rescored": rescored(product),
        "recall_asym": ops.similarity_topk(queries, bits, "float_binary", TOP)[1],
    }


def train_codebooks(documents: torch.Tensor) -> torch.Tensor:
    """[48, 16, D / 48]: k-means of each part of the documents."""
    parts = documents.view(len(documents), PARTS, -1).numpy()
    centers = [
        KMeans(CENTROIDS, n_init=1, max_iter=25, random_state=0).fit(parts[:, part]).cluster_centers_
        for part in range(PARTS)
    ]
    return torch.from_numpy(np.stack(centers).astype(np.float32))


def vectors_of(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents [n, 384] and queries [q, 384] of the retrieval sets, by the bare default model in float32 vectors."""
    texts: dict[str, list[str]] = {"corpus": [], "queries": []}
    for name in SETS:
        for kind, found in texts.items():
            rows = read_jsonl(data / name / f"{kind}.jsonl")
            found += [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
    limits = {"corpus": MAX_DOCUMENTS, "queries": MAX_QUERIES}
    random = np.random.default_rng(0)
    chosen = {kind: [found[i] for i in random.permutation(len(found))[: limits[kind]]] for kind, found in texts.items()}
    engine = LocalEngine(EngineConfig(dtype="bfloat16"))
    try:
        return embed(engine, chosen["corpus"]), embed(engine, chosen["queries"])
    finally:
        engine.close()


def embed(engine: LocalEngine, texts: list[str]) -> torch.Tensor:
    """[n, 384] float32, the texts cut at 128 tokens."""
    folder = find_model("minilm")
    tokenizer = Tokenizer(folder, replace(read_contract(folder), max_tokens=MAX_TOKENS))
    output, found = OutputSpec(engine.models[0].dimensions, Encoding.FLOAT32), []
    for start in range(0, len(texts), 500):
        tokens = tokenizer.encode_now([Frame("", text) for text in texts[start : start + 500]], Truncate.END)
        vectors, errors = asyncio.run(engine.embed(0, tokens, [BASE_MODEL] * len(tokens), output))
        assert not errors, errors
        found.append(np.frombuffer(vectors, dtype=np.float32).reshape(len(tokens), -1))
    return torch.from_numpy(np.concatenate(found))
