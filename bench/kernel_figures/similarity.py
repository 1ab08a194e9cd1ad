"""Brute-force search beside faiss, all scores beside numkong, and one query beside the fastest plain read of the rows.

Two threads on both sides, but for int8_pairs (one thread, its own processor time). Both sides of int8_pairs allocate
their result at every call, as their APIs do unasked; numkong's packing of the rows is not counted.
"""

import numpy as np
import torch
from harness.peers import Peers, speed_over_peer
from harness.report import Report
from harness.timing import interleaved, median_ratio

from embedmux.kernels import ops

WIDTH, QUERIES, TOP, THREADS = 384, 64, 10, 2
ROWS, BINARY_ROWS = 200_000, 4_000_000
# float_top10 and its like: figure, kind of the op, contender, rows, bar, sign of the contender's scores
SEARCHES = (
    ("int8_top10", "int8", "FaissInt8", ROWS, 10, 1),
    ("binary_top10", "hamming", "FaissBinary", BINARY_ROWS, 4, -1),
    ("float_top10", "dot", "FaissFloat", ROWS, 8, 1),
)
READS = (("int8_bandwidth", "int8", 1_000_000, torch.int8), ("binary_bandwidth", "hamming", 8_000_000, torch.uint8))
READ_BAR, PAIRS_BAR = 0.8, 2


def similarity_figures(report: Report, peers: Peers | None, *, is_long: bool) -> None:
    """Ratios of queries per second to the peers', and of bytes per second to those of a plain read."""
    rounds = 15 if is_long else 5
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for name, kind, contender, rows, bar, sign in SEARCHES:
            ratio = None if peers is None else search_ratio(peers, name, kind, contender, rows, sign, rounds)
            report.add(name, ratio, "x faiss", f">= {bar}", f"{QUERIES} queries, {rows} rows, {THREADS} threads")
        for name, kind, rows, dtype in READS:
            share = read_share(name, kind, vectors(rows, dtype), 3 * rounds)
            report.add(name, share, "x plain read", f">= {READ_BAR}", f"one query, {rows} rows, {THREADS} threads")
        torch.set_num_threads(1)
        ratio = None if peers is None else pairs_ratio(peers, 3 * rounds)
        report.add("int8_pairs", ratio, "x numkong", f">= {PAIRS_BAR}", f"{QUERIES} x {ROWS}, one thread")
    finally:
        torch.set_num_threads(threads)


def vectors(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows of 384 dimensions: unit ones in float32, codes in int8, packed bits in uint8."""
    generator = torch.Generator().manual_seed(rows)
    if dtype == torch.float32:
        return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator))
    width = WIDTH // 8 if dtype == torch.uint8 else WIDTH
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, (rows, width), dtype=dtype, generator=generator)


def search_ratio(peers: Peers, name: str, kind: str, contender: str, num_rows: int, sign: int, rounds: int) -> float:
    """Our queries per second over the peer's, for the same best ten."""
    dtype = {"int8": torch.int8, "hamming": torch.uint8, "dot": torch.float32}[kind]
    queries, rows = vectors(QUERIES, dtype), vectors(num_rows, dtype)
    peer = peers.make(contender, threads=THREADS, queries=queries.numpy(), rows=rows.numpy())

    def search() -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = ops.similarity_topk(queries, rows, kind, TOP)
        return found

    peer.seconds()
    scores, ids = peer.result()
    own_scores, own_ids = search()
    np.testing.assert_allclose(
        sign * own_scores.numpy(), scores, rtol=1e-5, atol=1e-5
    )  # equal, up to the order of ties
    different = int((own_ids.numpy() != ids).sum())
    ratio, own, other = speed_over_peer(search, peer, rounds=rounds)
    print(f"{name}: {own * 1e3:.1f} ms, {contender} {other * 1e3:.1f} ms, {different} ids differ by ties", flush=True)
    return ratio


def pairs_ratio(peers: Peers, rounds: int) -> float:
    """Our time for all scores over the peer's."""
    queries, rows = vectors(QUERIES, torch.int8), vectors(ROWS, torch.int8)
    peer = peers.make("NumkongInt8Pairs", threads=1, queries=queries.numpy(), rows=rows.numpy())

    def score() -> torch.Tensor:
        scores: torch.Tensor = ops.similarity(queries, rows, "int8")
        return scores

    peer.seconds()
    np.testing.assert_array_equal(score().numpy(), peer.result()[0])
    ratio, own, other = speed_over_peer(score, peer, rounds=rounds, clock="cpu")
    print(f"int8_pairs: {own * 1e3:.1f} ms, numkong {other * 1e3:.1f} ms", flush=True)
    return ratio


def read_share(name: str, kind: str, rows: torch.Tensor, rounds: int) -> float:
    """Bytes per second of a search for one query, over those of torch's maximum of the same bytes as int32, in turn.

    No reader at hand is faster: the C library's memchr reads at 0.7 to 0.9 of that.
    """
    query, words = rows[:1].clone(), rows.view(torch.int32)
    contenders = {"search": lambda: ops.similarity_topk(query, rows, kind, TOP), "read": words.max}
    seconds = interleaved(contenders, rounds=rounds, title=name)
    speeds = {side: rows.nbytes / 1e9 / float(np.median(times)) for side, times in seconds.items()}
    print(f"{name}: {speeds['search']:.1f} GB/s, plain read {speeds['read']:.1f} GB/s", flush=True)
    return median_ratio(seconds["read"], seconds["search"])
