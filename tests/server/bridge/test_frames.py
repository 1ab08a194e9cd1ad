"""Frames survive any cut of the stream, and errors keep their class and words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedmux.server import errors
from embedmux.server.bridge.frames import (
    FrameReader,
    JobBlock,
    Kind,
    done_frame,
    error_from_json,
    error_to_json,
    frame,
    pack_output,
    parse_done,
    unpack_output,
)
from embedmux.server.records import Encoding, EngineJob, Output, OutputSpec


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=200)), max_size=10), st.integers(1, 50))
def test_frames_survive_any_cut(frames: list[tuple[Kind, bytes]], cut: int) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    reader = FrameReader()
    found = [entry for start in range(0, len(stream), cut) for entry in reader.feed(stream[start : start + cut])]
    assert found == frames


CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_keep_class_and_words(kind: type[errors.EmbedmuxError]) -> None:
    found = error_from_json(error_to_json(kind("some words")))
    assert type(found) is kind
    assert str(found) == "some words"


def test_overload_keeps_its_pause() -> None:
    found = error_from_json(error_to_json(errors.Overloaded("full", retry_after_s=1.5)))
    assert isinstance(found, errors.Overloaded)
    assert found.retry_after_s == 1.5


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_block_holds_its_parts_without_overlap(encoding: Encoding) -> None:
    output = OutputSpec(13, encoding)
    memory = memoryview(bytearray(64 + JobBlock.size(3, 7, output)))
    block = JobBlock(memory, 64, 3, 7, output)
    block.offsets[:], block.adapters[:], block.token_ids[:] = 1, 2, 3
    block.shared[:], block.second[:] = 4, 5
    block.out[:] = b"\xff" * len(block.out)
    assert len(block.out) == 3 * encoding.row_bytes(13)
    assert block.end == len(memory)
    ints = [1] * 4 + [2] * 3 + [4] * 3 + [5] * 3 + [3] * 7
    assert np.array_equal(np.frombuffer(memory[64 : block.out_start], np.int32), ints)
    assert not any(memory[:64])


def test_done_carries_errors_by_text() -> None:
    empty = np.zeros(0, np.int32)
    output = OutputSpec(1, Encoding.FLOAT32)
    job = EngineJob(9, empty, empty, empty, output, None, memoryview(bytearray(4)), empty, empty)
    job.errors = {2: errors.NotFound("gone"), 5: errors.EngineFailure("broken")}
    job.began = 3.5
    payload = done_frame(job)[5:]
    job_id, done = parse_done(payload)
    assert (job_id, done.began) == (9, 3.5)
    assert done.ended > 0
    assert {index: (type(error), str(error)) for index, error in done.errors.items()} == {
        2: (errors.NotFound, "gone"),
        5: (errors.EngineFailure, "broken"),
    }


def test_rows_of_sparse_weights_and_token_vectors_have_room_for_each_token() -> None:
    output = OutputSpec(6, Encoding.FLOAT16, (Output.DENSE, Output.SPARSE, Output.TOKENS), token_dimensions=5)
    lengths = [3, 1, 7]
    starts = output.row_starts(lengths)
    sizes = [12 + 4 + 8 * length + 4 + 10 * length for length in lengths]
    assert [starts[i + 1] - starts[i] for i in range(3)] == sizes
    assert output.total_bytes(3, sum(lengths)) == sum(sizes) == starts[-1]
    assert [output.row_bytes(length) for length in lengths] == sizes


@pytest.mark.parametrize("encoding", list(Encoding))
def test_what_is_wanted_crosses_the_border_whole(encoding: Encoding) -> None:
    members = list(Output)
    for bits in range(1, 1 << len(members)):
        outputs = tuple(member for place, member in enumerate(members) if bits >> place & 1)
        output = OutputSpec(1024, encoding, outputs, 128, 125)
        assert unpack_output(*pack_output(output)) == output
