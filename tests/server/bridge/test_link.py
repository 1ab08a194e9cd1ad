"""The front's end of the engine's socket: every block comes back, whoever gives up and whenever."""

import asyncio
import mmap
import time
from typing import Any
from unittest.mock import create_autospec

import pytest

from embedmux.server.bridge.frames import DONE, SUBMIT, FrameReader, Kind, frame
from embedmux.server.bridge.link import EngineLink
from embedmux.server.errors import InvalidRequest, Overloaded, Unavailable
from embedmux.server.records import ANY_TERMS, Encoding, Notes, OutputSpec, Terms, Tokens

OUTPUT = OutputSpec(8, Encoding.FLOAT32)
SIZE = 4096


class Wire:
    """A link whose engine is this test."""

    def __init__(self) -> None:
        self.transport: Any = create_autospec(asyncio.Transport, instance=True)
        self.transport.is_closing.return_value = False
        self.link = EngineLink(mmap.mmap(-1, SIZE))
        self.link.connection_made(self.transport)

    def embed(self, num_texts: int = 2) -> asyncio.Task[Any]:
        return asyncio.create_task(
            self.link.embed(0, [Tokens([1, 2, 3], 3)] * num_texts, [-1] * num_texts, OUTPUT, ANY_TERMS)
        )

    def sent(self, kind: Kind) -> list[bytes]:
        self.link._flush()  # what the event loop does when the calls that run now have had their turn
        written = b"".join(call.args[0] for call in self.transport.write.call_args_list)
        return [payload for found, payload in FrameReader().feed(written) if found is kind]

    def answer(self, submitted: bytes) -> None:
        self.link.data_received(frame(Kind.DONE, DONE.pack(SUBMIT.unpack_from(submitted)[0], 0.0, 0.0)))

    @property
    def used(self) -> int:
        return self.link._blocks.used


async def test_an_answer_gives_the_block_back() -> None:
    wire = Wire()
    task = wire.embed()
    await asyncio.sleep(0)
    assert wire.used > 0
    wire.answer(wire.sent(Kind.SUBMIT)[0])
    vectors, errors = await task
    assert (len(vectors), errors, wire.used) == (2 * 8 * 4, {}, 0)


async def test_an_answer_notes_what_the_call_took() -> None:
    wire, notes = Wire(), Notes()
    task = asyncio.create_task(wire.link.embed(0, [Tokens([1, 2, 3], 3)], [-1], OUTPUT, Terms(notes=notes)))
    await asyncio.sleep(0)
    job_id = SUBMIT.unpack_from(wire.sent(Kind.SUBMIT)[0])[0]
    now = time.monotonic()
    wire.link.data_received(frame(Kind.DONE, DONE.pack(job_id, now + 1.0, now + 3.0)))
    await task
    assert notes.num_tokens == 3
    assert [(name, end) for name, _, end in notes.spans] == [("queue", now + 1.0), ("compute", now + 3.0)]


async def test_a_job_that_computed_nothing_was_only_queued() -> None:
    wire, notes = Wire(), Notes()
    task = asyncio.create_task(wire.link.embed(0, [Tokens([1], 1)], [-1], OUTPUT, Terms(notes=notes)))
    await asyncio.sleep(0)
    job_id = SUBMIT.unpack_from(wire.sent(Kind.SUBMIT)[0])[0]
    wire.link.data_received(frame(Kind.DONE, DONE.pack(job_id, 0.0, 9.0)))
    await task
    assert [(name, end) for name, _, end in notes.spans] == [("queue", 9.0)]


async def test_a_cancelled_block_is_kept_until_the_engine_has_answered() -> None:
    wire = Wire()
    task = wire.embed()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert wire.used > 0, "the engine may still write to it"
    assert len(wire.sent(Kind.CANCEL)) == 1
    wire.answer(wire.sent(Kind.SUBMIT)[0])
    assert wire.used == 0


async def test_a_block_answered_just_before_the_cancel_comes_back() -> None:
    wire = Wire()
    task = wire.embed()
    await asyncio.sleep(0)
    wire.answer(wire.sent(Kind.SUBMIT)[0])
    task.cancel()  # before the task could see its answer
    await asyncio.wait([task])
    assert task.cancelled()
    assert (wire.used, wire.sent(Kind.CANCEL)) == (0, [])


async def test_full_memory_refuses_and_takes_nothing() -> None:
    wire = Wire()
    first = wire.embed(num_texts=50)
    await asyncio.sleep(0)
    taken = wire.used
    with pytest.raises(Overloaded, match=f"{taken} of {SIZE} bytes of shared memory"):
        await wire.embed(num_texts=50)
    assert wire.used == taken > 0
    wire.answer(wire.sent(Kind.SUBMIT)[0])
    await first


async def test_a_request_that_could_never_fit_is_told_so() -> None:
    wire = Wire()
    with pytest.raises(InvalidRequest, match=rf"takes \d+ bytes of shared memory, the limit is {SIZE}.*fewer texts"):
        await wire.embed(num_texts=500)
    assert wire.used == 0


async def test_a_lost_engine_answers_everything_with_unavailable() -> None:
    wire = Wire()
    tasks = [wire.embed() for _ in range(3)]
    await asyncio.sleep(0)
    wire.link.connection_lost(None)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, Unavailable)
    with pytest.raises(Unavailable):
        wire.transport.is_closing.return_value = True
        await wire.embed()


async def test_a_block_answered_just_after_the_cancel_comes_back_once() -> None:
    wire = Wire()
    task = wire.embed()
    await asyncio.sleep(0)
    task.cancel()
    wire.answer(wire.sent(Kind.SUBMIT)[0])  # before the task could see that it was cancelled
    await asyncio.wait([task])
    assert task.cancelled()
    assert (wire.used, wire.sent(Kind.CANCEL)) == (0, [])
