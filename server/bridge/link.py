"""The front's end of one engine process: allocates blocks, sends jobs, resolves futures. Runs on the event loop."""

import asyncio
import itertools
import json
import mmap
import time
from typing import Any

import numpy as np

from embedmux.server.bridge.frames import (
    JOB_ID,
    Done,
    FrameReader,
    JobBlock,
    Kind,
    error_from_json,
    frame,
    json_frame,
    parse_done,
    submit_frame,
)
from embedmux.server.bridge.port import Answer
from embedmux.server.errors import InvalidRequest, Overloaded, Unavailable
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.free_list import FreeList
from embedmux.server.records import OutputSpec, Terms, Tokens

MEMORY_RETRY_S = 0.1


class EngineLink(asyncio.Protocol):
    """One connection to one engine process; it ends with that process and is never reused."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.models: list[ModelInfo] = []
        self.adapters: list[dict[str, AdapterInfo]] = []  # by model, a new dict after every change
        self.snapshot: dict[str, Any] = {}  # see Runtime.snapshot; ``at`` is when it was taken, on time.monotonic
        self.before: dict[str, Any] = {}  # the one before
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._memory = memoryview(memory)
        self._blocks = FreeList(len(memory))
        self._ids = itertools.count(1)
        self._jobs: dict[int, asyncio.Future[Done]] = {}
        self._starts: dict[int, int] = {}  # job id -> its block; kept until DONE, since the engine writes to it
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._reader = FrameReader()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    async def embed(
        self, model: int, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> Answer:
        """Rows of tokenised texts, one after another, and the errors of texts without one (their rows are undefined).

        Raises Overloaded when the shared memory is full, InvalidRequest when it never could hold the request, and
        Unavailable when the engine process ends meanwhile. When the awaiting task is cancelled, texts not yet computing
        are dropped.
        """
        transport = self._connected()
        num_tokens = sum(len(text.ids) for text in tokens)
        size = JobBlock.size(len(tokens), num_tokens, output)
        if size > self._blocks.size:  # token vectors of a long request; to try again would never help
            raise InvalidRequest(
                f"the request with its outputs takes {size} bytes of shared memory, the limit is {self._blocks.size} "
                "(shared_memory_bytes); send fewer texts at once"
            )
        start = self._blocks.allocate(size)
        if start is None:
            raise Overloaded(
                f"{self._blocks.used} of {self._blocks.size} bytes of shared memory hold unanswered requests; "
                "try again later or raise shared_memory_bytes",
                retry_after_s=MEMORY_RETRY_S,
                reason="memory",
            )
        block = JobBlock(self._memory, start, len(tokens), num_tokens, output)
        _fill(block, tokens, adapters)
        job_id = next(self._ids)
        done: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._jobs[job_id], self._starts[job_id] = done, start
        submitted, notes = time.monotonic(), terms.notes
        if notes is not None:
            notes.num_tokens += num_tokens
        self._send(submit_frame(job_id, start, len(tokens), num_tokens, model, output, terms))
        try:
            errors, began, ended = await done
        except asyncio.CancelledError:
            if job_id not in self._jobs:  # answered just before or just after this task was cancelled
                self._give_back(job_id)
            elif not transport.is_closing():
                self._send(frame(Kind.CANCEL, JOB_ID.pack(job_id)))
            raise
        vectors = bytes(block.out)
        self._give_back(job_id)
        if notes is not None:
            notes.answered(submitted, began, ended)
        return vectors, errors

    async def call(self, method: str, **arguments: Any) -> Any:
        """The result of a method of the engine process; raises the error it answered with."""
        self._connected()
        call_id = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        self._send(json_frame(Kind.CALL, {"id": call_id, "method": method, "arguments": arguments}))
        return await answer

    def open(self) -> None:
        """Lets other fronts connect to the engine."""
        self._connected()
        self._send(frame(Kind.OPEN))

    def close(self) -> None:
        """Asks the engine to finish what it holds and end; ``lost`` resolves when it has."""
        if self._transport is not None and not self._transport.is_closing():
            self._send(frame(Kind.CLOSE))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open; the engine is still loading."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Frames from the engine process."""
        for kind, payload in self._reader.feed(data):
            if kind is Kind.DONE:
                self._done(payload)
            elif kind is Kind.ANSWER:
                self._answer(json.loads(payload))
            elif kind is Kind.READY:
                facts = json.loads(payload)
                self.models = [model_info(each["model"]) for each in facts]
                self.adapters = [{info["id"]: adapter_info(info) for info in each["adapters"]} for each in facts]
                self.ready.set_result(None)
            elif kind is Kind.ADAPTERS:
                change = json.loads(payload)
                self.adapters[change["model"]] = {info["id"]: adapter_info(info) for info in change["adapters"]}
            elif kind is Kind.STATS:
                self.before, self.snapshot = self.snapshot, json.loads(payload)
            elif kind is Kind.FAILED:
                self.ready.set_exception(error_from_json(json.loads(payload)))

    def connection_lost(self, error: Exception | None) -> None:
        """The engine process is gone: everything it held is answered with Unavailable."""
        gone = Unavailable(
            "the engine process ended while it held this request; it is being restarted, try again"
            if self.ready.done()
            else "the engine process ended while it loaded the model; its log says why"
        )
        waiting = [*self._jobs.values(), *self._calls.values(), self.ready]
        for future in waiting:
            if not future.done():
                future.set_exception(gone)
        self.ready.exception()  # mark as retrieved: nobody may be waiting for it
        self.lost.set_result(None)

    def _connected(self) -> asyncio.Transport:
        if self._transport is None or self._transport.is_closing():
            raise Unavailable("the engine process is not running; it is being restarted, try again")
        return self._transport

    def _send(self, data: bytes) -> None:
        """Writes a frame, together with those of the other calls that the event loop runs now: a write takes longer
        than all else that happens here."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        frames, self._unsent = self._unsent, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def _done(self, payload: bytes) -> None:
        job_id, answer = parse_done(payload)
        done = self._jobs.pop(job_id)
        if done.cancelled():
            self._give_back(job_id)
        else:
            done.set_result(answer)

    def _give_back(self, job_id: int) -> None:
        if (start := self._starts.pop(job_id, None)) is not None:
            self._blocks.free(start)

    def _answer(self, value: dict[str, Any]) -> None:
        answer = self._calls.pop(value["id"])
        if answer.done():
            return
        if "error" in value:
            answer.set_exception(error_from_json(value["error"]))
        else:
            answer.set_result(value["result"])


def adapter_info(value: dict[str, Any]) -> AdapterInfo:
    """AdapterInfo from its JSON form, whose keys are strings."""
    return AdapterInfo(**{**value, "calibrations": {int(k): v for k, v in value["calibrations"].items()}})


def model_info(value: dict[str, Any]) -> ModelInfo:
    """ModelInfo from its JSON form, which has lists for tuples."""
    calibrations = {int(size): found for size, found in value["calibrations"].items()}
    tuples = {name: tuple(value[name]) for name in ("sizes", "outputs", "notes")}
    return ModelInfo(**{**value, "calibrations": calibrations, **tuples})


def _fill(block: JobBlock, tokens: list[Tokens], adapters: list[int]) -> None:
    lengths = [len(text.ids) for text in tokens]
    block.offsets[0] = 0
    np.cumsum(lengths, out=block.offsets[1:])
    every_id = itertools.chain.from_iterable(text.ids for text in tokens)
    block.token_ids[:] = np.fromiter(every_id, dtype=np.int32, count=len(block.token_ids))
    block.adapters[:] = adapters
    block.shared[:] = [text.shared for text in tokens]
    block.second[:] = [text.second for text in tokens]
