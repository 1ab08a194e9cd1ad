"""Packing, and buckets: what a batch leaves of a bucket's buffers says nothing."""

import itertools

import numpy as np
import pytest
import torch

from embedmux.server.batching.graphs import GraphedBackbone, bucket_sizes
from embedmux.server.batching.pack import PLAIN, Layout, order, pack, piece_of
from embedmux.server.batching.staging import Staging
from embedmux.server.packed import Batch, TokenStates
from embedmux.server.records import ANY_TERMS, BASE_MODEL, Encoding, EngineJob, OutputSpec, Sequence

CPU = torch.device("cpu")


def sequences(lengths: list[int], slots: list[int], seed: int = 0) -> list[Sequence]:
    random = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    job = EngineJob(
        id=1, token_ids=random.integers(1, 1000, offsets[-1]).astype(np.int32), offsets=offsets,
        adapters=np.array(slots, dtype=np.int32), output=OutputSpec(4, Encoding.FLOAT32), terms=ANY_TERMS,
        out=memoryview(bytearray()), shared=np.zeros(len(slots), np.int32), second=np.zeros(len(slots), np.int32),
    )  # fmt: skip
    return [Sequence(job, i, n, slot, 0.0) for i, (n, slot) in enumerate(zip(lengths, slots, strict=True))]


def packed(lengths: list[int], slots: list[int]) -> Layout:
    return pack([piece_of(text) for text in order(sequences(lengths, slots))], PLAIN)


def test_batch_is_sorted_by_slot_and_packed_end_to_end() -> None:
    texts = order(sequences([3, 5, 1, 2], [2, BASE_MODEL, 2, 0]))
    layout = pack([piece_of(text) for text in texts], PLAIN)
    assert [text.num_tokens for text in texts] == [5, 2, 3, 1]
    assert layout.offsets.tolist() == [0, 5, 7, 10, 11]
    assert layout.segment_offsets.tolist() == [0, 5, 7, 11]
    assert layout.segment_slots.tolist() == [BASE_MODEL, 0, 2]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 0]
    job = texts[0].job
    expected = [job.token_ids[job.offsets[t.index] : job.offsets[t.index + 1]] for t in texts]
    assert layout.token_ids.tolist() == np.concatenate(expected).tolist()


def test_staged_batch_is_the_layout_and_empty_sequences_behind_it() -> None:
    staging = Staging(max_tokens=64, max_texts=9, max_segments=5, device=CPU)
    for lengths, slots in (([30, 20, 14], [0, 1, 2]), ([3, 4], [BASE_MODEL, 7]), ([1], [3])):
        layout = packed(lengths, slots)
        batch = staging.fill(layout)
        n, g, total = len(lengths), len(layout.segment_slots), sum(lengths)
        assert batch.token_ids[:total].tolist() == layout.token_ids.tolist()
        assert batch.positions[:total].tolist() == layout.positions.tolist()
        assert batch.offsets.tolist() == [*layout.offsets.tolist(), *[total] * (9 - n)]
        assert batch.segments.offsets.tolist() == [*layout.segment_offsets.tolist(), *[total] * (5 - g)]
        assert batch.segments.slots.tolist() == [*layout.segment_slots.tolist(), *[BASE_MODEL] * (5 - g)]


@pytest.mark.parametrize("lengths", [[65], [1] * 10], ids=["tokens", "texts"])
def test_bucket_says_what_it_does_not_hold(lengths: list[int]) -> None:
    staging = Staging(max_tokens=64, max_texts=9, max_segments=9, device=CPU)
    assert not staging.holds(packed(lengths, [0] * len(lengths)))
    assert not Staging(max_tokens=64, max_texts=64, max_segments=1, device=CPU).holds(packed([1, 1], [0, 1]))


def test_bucket_sizes_rise_to_the_budget_and_leave_at_most_a_third() -> None:
    for budget in (1, 64, 65, 100, 2048, 3000):
        sizes = bucket_sizes(budget)
        assert sizes == sorted(set(sizes)) and sizes[-1] == budget
        assert all(2 * b <= 3 * a for a, b in itertools.pairwise(sizes))


def test_every_batch_goes_to_the_smallest_bucket_that_holds_it() -> None:
    seen: list[int] = []

    def forward(batch: Batch) -> TokenStates:
        seen.append(len(batch.token_ids))
        return TokenStates(batch.token_ids[:, None].float(), batch.offsets)

    graphed = GraphedBackbone(forward, max_tokens=256, max_texts=8, max_segments=4, device=CPU)
    for lengths in ([5], [64], [65], [100, 100], [256], [300], [1] * 9):
        layout: Layout = packed(lengths, [0] * len(lengths))
        states, batch = graphed(layout)
        assert states.hidden[: sum(lengths), 0].tolist() == layout.token_ids.tolist()
        assert batch.offsets[: len(lengths) + 1].tolist() == layout.offsets.tolist()
    assert seen == [64, 64, 96, 256, 256, 300, 9]  # the last two fit no bucket and run at their own size
