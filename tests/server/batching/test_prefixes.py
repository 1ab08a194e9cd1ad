"""Shared prefixes: which tokens are computed once, where their keys go, and that nothing is kept that may be wrong."""

import numpy as np
import torch

from embedmux.server.batching.pack import Packing, Piece, pack, piece_of
from embedmux.server.batching.prefixes import LEAST_TOKENS, PrefixCache, make_pool
from embedmux.server.records import ANY_TERMS, Encoding, EngineJob, OutputSpec, Pooling, Sequence

PROMPT, OTHER = list(range(100, 112)), list(range(200, 210))


def texts(*items: tuple[list[int], int, int]) -> list[Sequence]:
    """(token ids, adapter, shared tokens) of each; slots are the adapters' numbers."""
    ids = [item[0] for item in items]
    job = EngineJob(
        id=1, token_ids=np.concatenate(ids).astype(np.int32), offsets=np.cumsum([0, *map(len, ids)], dtype=np.int32),
        adapters=np.array([item[1] for item in items], np.int32), output=OutputSpec(4, Encoding.FLOAT32),
        terms=ANY_TERMS, out=memoryview(bytearray()), shared=np.array([item[2] for item in items], np.int32),
        second=np.zeros(len(ids), np.int32),
    )  # fmt: skip
    return [Sequence(job, i, len(ids[i]), item[1], 0.0) for i, item in enumerate(items)]


def split(cache: PrefixCache, sequences: list[Sequence]) -> tuple[list[Piece], list[int]]:
    return cache.split(sequences, [piece_of(sequence) for sequence in sequences])


def packing(rows: int = 64) -> Packing:
    pool = make_pool(
        num_layers=1, num_rows=rows, num_kv_heads=1, head_size=16, dtype=torch.float32, device=torch.device("cpu")
    )
    return Packing(Pooling.LAST, pool)


def test_a_prefix_joins_its_first_batch_once_and_later_batches_not_at_all() -> None:
    cache = PrefixCache(64)
    pieces, places = split(cache, texts(([*PROMPT, 1, 2], 0, 12), ([*PROMPT, 3], 0, 12), ([5, 6], 0, 0)))
    assert [piece.token_ids.tolist() for piece in pieces] == [PROMPT, [1, 2], [3], [5, 6]]
    assert places == [1, 2, 3]
    assert [piece.start for piece in pieces] == [0, 12, 12, 0]
    begin = pieces[0].target
    assert [piece.prefix for piece in pieces] == [None, (begin, begin + 12), (begin, begin + 12), None]
    pieces, places = split(cache, texts(([*PROMPT, 9], 0, 12)))
    assert [(piece.token_ids.tolist(), piece.prefix) for piece in pieces] == [([9], (begin, begin + 12))]
    assert places == [0]


def test_the_layout_says_where_every_key_is_kept_and_found() -> None:
    cache = PrefixCache(64)
    pieces, _ = split(cache, texts(([*PROMPT, 1, 2], 0, 12), ([*OTHER, 3], 1, 10), ([*PROMPT, 4], 1, 12)))
    layout = pack(pieces, packing())
    prefixes = [piece for piece in pieces if piece.target >= 0]
    rows = {row: token for piece in prefixes for row, token in enumerate(piece.token_ids, piece.target)}
    assert {int(t): int(layout.token_ids[s]) for s, t in zip(layout.source, layout.target, strict=True)} == rows
    for place, piece in enumerate(pieces):
        found = layout.prefix_of[place]
        assert (found == -1) == (piece.prefix is None)
        if piece.prefix is not None:
            assert tuple(layout.prefix_offsets[found : found + 2]) == piece.prefix
            assert layout.positions[layout.offsets[place]] == piece.start
    assert layout.prefix_offsets[-1] == 64
    assert (np.diff(layout.prefix_offsets) >= 0).all()
    assert layout.pooled_rows.tolist() == (layout.offsets[1:] - 1).tolist()


def test_adapters_do_not_share_a_prompt_and_neither_do_short_prefixes_or_whole_texts() -> None:
    cache = PrefixCache(64)
    short = PROMPT[: LEAST_TOKENS - 1]
    pieces, places = split(
        cache, texts(([*PROMPT, 1], 0, 12), ([*PROMPT, 1], 1, 12), ([*short, 1], 1, len(short)), (PROMPT, 1, 12))
    )
    assert [piece.target >= 0 for piece in pieces] == [True, False, True, False, False, False]
    assert places == [1, 3, 4, 5]


def test_the_least_recently_used_prefix_makes_room_but_never_one_of_the_batch() -> None:
    cache = PrefixCache(25)  # two prefixes of twelve tokens, and the row that belongs to nobody
    first, second, third = (list(range(base, base + 12)) for base in (100, 300, 500))
    split(cache, texts(([*first, 1], 0, 12)))
    split(cache, texts(([*second, 1], 0, 12)))
    split(cache, texts(([*first, 2], 0, 12)))
    pieces, _ = split(cache, texts(([*third, 1], 0, 12)))  # takes the place of the second
    assert pieces[0].token_ids.tolist() == third
    assert len(split(cache, texts(([*first, 3], 0, 12)))[0]) == 1
    pieces, places = split(cache, texts(([*first, 1], 0, 12), ([*third, 1], 0, 12), ([*second, 1], 0, 12)))
    assert [piece.token_ids.tolist() for piece in pieces] == [[1], [1], [*second, 1]]
    assert places == [0, 1, 2]
    pieces, _ = split(cache, texts((list(range(40)), 0, 30)))
    assert len(pieces) == 1, "longer than the pool: computed whole"
    assert len(split(cache, texts(([*first, 4], 0, 12)))[0]) == 1, "and nothing was thrown out for it"


def test_after_a_failed_batch_every_prefix_is_computed_anew() -> None:
    cache = PrefixCache(64)
    split(cache, texts(([*PROMPT, 1], 0, 12)))
    cache.clear()
    pieces, _ = split(cache, texts(([*PROMPT, 1], 0, 12)))
    assert pieces[0].token_ids.tolist() == PROMPT
