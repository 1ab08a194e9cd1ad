"""Product-quantised search beside faiss's fast scan, and late interaction beside numkong.

Searches run on two threads on both sides, by the clock on the wall; maxsim on one, by its own processor time. faiss
gets our codebooks and its own layout of the codes, numkong its packed tokens: neither's preparation is counted.
"""

import numpy as np
import torch
from harness.peers import Peers, speed_over_peer
from harness.report import Report

from embedmux.kernels import ops

PQ_QUERIES, PQ_ROWS, PARTS, DIMENSIONS, TOP, THREADS, PQ_BAR = 64, 200_000, 48, 384, 10, 2, 1
TOKENS, DOCUMENTS, DOCUMENT_TOKENS, TOKEN_DIMENSIONS, MAXSIM_BAR = 32, 1000, 256, 128, 1.5
SAME_HITS = 0.9  # faiss ranks by tables rounded to bytes
SCORE_ERROR = 0.02  # numkong picks each token's best match by int8 products


def late_figures(report: Report, peers: Peers | None, *, is_long: bool) -> None:
    """Ratios of our speed to the peers' on the same vectors."""
    rounds = 45 if is_long else 15
    threads = torch.get_num_threads()
    try:
        ratio = None if peers is None else pq_ratio(peers, rounds)
        note = f"{PQ_QUERIES} queries, {PQ_ROWS} rows, PQ{PARTS}x4, {THREADS} threads"
        report.add("pq_top10", ratio, "x faiss", f">= {PQ_BAR}", note)
        ratio = None if peers is None else maxsim_ratio(peers, rounds)
        note = f"{TOKENS} tokens, {DOCUMENTS} documents of {DOCUMENT_TOKENS}, bfloat16, one thread"
        report.add("maxsim", ratio, "x numkong", f">= {MAXSIM_BAR}", note)
    finally:
        torch.set_num_threads(threads)


def units(rows: int, dimensions: int, seed: int) -> torch.Tensor:
    """Random unit rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator))


def pq_ratio(peers: Peers, rounds: int) -> float:
    """Our queries per second over those of faiss's "PQ48x4fs"; centroids are parts of the first rows."""
    torch.set_num_threads(THREADS)
    queries, rows = units(PQ_QUERIES, DIMENSIONS, 0), units(PQ_ROWS, DIMENSIONS, 1)
    codebooks = rows[:16].view(16, PARTS, -1).transpose(0, 1).contiguous()
    arrays = {"queries": queries, "rows": rows, "codebooks": codebooks}
    peer = peers.make("FaissPq", threads=THREADS, **{name: tensor.numpy() for name, tensor in arrays.items()})
    codes, tables = ops.quantize_pq(rows, codebooks), ops.pq_tables(queries, codebooks)
    packed = ops.pack_pq(codes)
    peer.seconds()
    ids, theirs = ops.pq_topk(tables, codes, TOP, packed)[1].numpy(), peer.result()[1]
    same = (ids[:, :, None] == theirs[:, None, :]).any(2).mean()
    assert same >= SAME_HITS, f"only {same:.3f} of our hits are faiss's"
    ratio, ours, other = speed_over_peer(lambda: ops.pq_topk(tables, codes, TOP, packed), peer, rounds=rounds)
    print(
        f"pq_top10: {1e3 * ours:.2f} ms, faiss {1e3 * other:.2f} ms, {100 * same:.1f} % of hits in common", flush=True
    )
    return ratio


def maxsim_ratio(peers: Peers, rounds: int) -> float:
    """Our speed over numkong's maxsim_packed, one document a call, as its API has it."""
    torch.set_num_threads(1)
    queries = units(TOKENS, TOKEN_DIMENSIONS, 2).bfloat16()
    documents = units(DOCUMENTS * DOCUMENT_TOKENS, TOKEN_DIMENSIONS, 3).bfloat16()
    shape = DOCUMENTS, DOCUMENT_TOKENS, TOKEN_DIMENSIONS
    peer = peers.make(
        "NumkongMaxsim", threads=1, queries=queries.float().numpy(), documents=documents.float().view(shape).numpy()
    )
    query_offsets = torch.tensor([0, TOKENS], dtype=torch.int32)
    offsets = torch.arange(DOCUMENTS + 1, dtype=torch.int32) * DOCUMENT_TOKENS
    peer.seconds()
    error = np.abs(ops.maxsim(queries, query_offsets, documents, offsets)[0].numpy() - peer.result()[0]).max()
    assert error < SCORE_ERROR, f"a score differs by {error:.4f} from numkong's"
    ratio, ours, other = speed_over_peer(
        lambda: ops.maxsim(queries, query_offsets, documents, offsets), peer, rounds=rounds, clock="cpu"
    )
    print(f"maxsim: {1e3 * ours:.2f} ms, numkong {1e3 * other:.2f} ms, scores within {error:.4f}", flush=True)
    return ratio
