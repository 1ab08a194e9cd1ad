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
    parse_done,
)
from embedmux.server.records import Encoding, EngineJob, OutputSpec


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
    block.out[:] = b"\xff" * len(block.out)
    assert len(block.out) == 3 * encoding.row_bytes(13)
    assert block.end == len(memory)
    assert np.array_equal(np.frombuffer(memory[64 : block.out_start], np.int32), [1] * 4 + [2] * 3 + [3] * 7)
    assert not any(memory[:64])


def test_done_carries_errors_by_text() -> None:
    empty = np.zeros(0, np.int32)
    job = EngineJob(9, empty, empty, empty, OutputSpec(1, Encoding.FLOAT32), None, memoryview(bytearray(4)))
    job.errors = {2: errors.NotFound("gone"), 5: errors.EngineFailure("broken")}
    payload = done_frame(job)[5:]
    job_id, found = parse_done(payload)
    assert job_id == 9
    assert {index: (type(error), str(error)) for index, error in found.items()} == {
        2: (errors.NotFound, "gone"),
        5: (errors.EngineFailure, "broken"),
    }
