"""The messages between the front and the engine process, on a stream socket.

A frame is ``<length u32><kind u8><payload>``. Bulk data never travels here: a job's arrays and its vectors lie in a
block of shared memory that the front allocates and frees; frames name the block. The engine answers every SUBMIT with
exactly one DONE, cancelled or not, and only then may the block be used again.
"""

import enum
import json
import math
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from embedmux.server import errors
from embedmux.server.errors import EmbedmuxError, EngineFailure, Overloaded
from embedmux.server.records import Encoding, EngineJob, Output, OutputSpec, Priority, Terms

ENCODINGS, OUTPUTS, PRIORITIES = list(Encoding), list(Output), list(Priority)

HEADER = struct.Struct("<IB")
# job id, block start, texts, tokens, model; deadline (monotonic s, inf for none), priority (index in the enum); then
# what is wanted: dimensions, token dimensions, most vectors, encoding (index in the enum), outputs (a bit for each
# member of the enum). The tenant's name follows.
SUBMIT = struct.Struct("<QQIIHdBIIIBB")
JOB_ID = struct.Struct("<Q")
DONE = struct.Struct("<Qdd")  # job id; when its first batch began (0: none did) and when it was answered, monotonic s


class Kind(enum.IntEnum):
    """What a frame says; the comment is its payload."""

    READY = 1  # engine -> front: JSON of every model and its adapters
    FAILED = 2  # engine -> front: JSON error, then the engine exits
    SUBMIT = 3  # front -> engine
    CANCEL = 4  # front -> engine: job id
    DONE = 5  # engine -> front: job id and two times, then JSON errors by text if there are any
    CALL = 6  # front -> engine: JSON {id, method, arguments}
    ANSWER = 7  # engine -> front: JSON {id, result} or {id, error}
    CLOSE = 8  # front -> engine: finish what is queued, then exit
    OPEN = 9  # first front -> engine: other fronts may come
    ADAPTERS = 10  # engine -> fronts: JSON {model, adapters} after every change
    STATS = 11  # engine -> fronts: JSON of Runtime.snapshot, every second


class Done(NamedTuple):
    """How a job ended: errors by text, when its first batch began (0: none did), when it was answered."""

    errors: dict[int, EmbedmuxError]
    began: float
    ended: float


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind) + payload


def json_frame(kind: Kind, value: Any) -> bytes:
    """A frame whose payload is JSON."""
    return frame(kind, json.dumps(value).encode())


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Every complete frame that ``data`` finishes, in order."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield Kind(kind), bytes(self._buffer[start + HEADER.size : end])
            start = end
        del self._buffer[:start]


class JobBlock:
    """Where the parts of a job lie in its block: offsets, adapter handles, shared prefixes, boundaries of pairs, token
    ids, and room for the rows."""

    def __init__(self, memory: memoryview, start: int, num_texts: int, num_tokens: int, output: OutputSpec) -> None:
        ints = 4 * num_texts + 1 + num_tokens
        self.out_start = start + 4 * ints
        self.end = self.out_start + output.total_bytes(num_texts, num_tokens)
        values = np.frombuffer(memory, dtype=np.int32, count=ints, offset=start)
        self.offsets = values[: num_texts + 1]
        self.adapters = values[num_texts + 1 : 2 * num_texts + 1]
        self.shared = values[2 * num_texts + 1 : 3 * num_texts + 1]
        self.second = values[3 * num_texts + 1 : 4 * num_texts + 1]
        self.token_ids = values[4 * num_texts + 1 :]
        self.out = memory[self.out_start : self.end]

    @staticmethod
    def size(num_texts: int, num_tokens: int, output: OutputSpec) -> int:
        """Bytes the block takes."""
        return 4 * (4 * num_texts + 1 + num_tokens) + output.total_bytes(num_texts, num_tokens)


def submit_frame(
    job_id: int, start: int, num_texts: int, num_tokens: int, model: int, output: OutputSpec, terms: Terms
) -> bytes:
    """SUBMIT for a job whose block begins at ``start``."""
    deadline = math.inf if terms.deadline is None else terms.deadline
    due = deadline, PRIORITIES.index(terms.priority)
    header = SUBMIT.pack(job_id, start, num_texts, num_tokens, model, *due, *pack_output(output))
    return frame(Kind.SUBMIT, header + terms.tenant.encode())


def parse_submit(payload: bytes) -> tuple[int, int, int, int, int, OutputSpec, Terms]:
    """The inverse of submit_frame, of its payload."""
    job_id, start, num_texts, num_tokens, model, deadline, priority, *wanted = SUBMIT.unpack_from(payload)
    tenant = payload[SUBMIT.size :].decode()
    terms = Terms(None if math.isinf(deadline) else deadline, tenant, PRIORITIES[priority])
    return job_id, start, num_texts, num_tokens, model, unpack_output(*wanted), terms


def pack_output(output: OutputSpec) -> tuple[int, int, int, int, int]:
    """The last five fields of SUBMIT."""
    outputs = sum(1 << OUTPUTS.index(member) for member in output.outputs)
    return output.dimensions, output.token_dimensions, output.most_vectors, ENCODINGS.index(output.encoding), outputs


def unpack_output(dimensions: int, token_dimensions: int, most_vectors: int, encoding: int, outputs: int) -> OutputSpec:
    """The inverse of pack_output."""
    members = tuple(member for place, member in enumerate(OUTPUTS) if outputs >> place & 1)
    return OutputSpec(dimensions, ENCODINGS[encoding], members, token_dimensions, most_vectors)


def error_to_json(error: EmbedmuxError) -> dict[str, Any]:
    """An error as it crosses the process border."""
    found: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, Overloaded):
        found["retry_after_s"], found["reason"] = error.retry_after_s, error.reason
    return found


def error_from_json(value: dict[str, Any]) -> EmbedmuxError:
    """The inverse of error_to_json; an unknown class becomes EngineFailure."""
    kind = getattr(errors, value["kind"], EngineFailure)
    if kind is Overloaded:
        return Overloaded(value["message"], value["retry_after_s"], value["reason"])
    found: EmbedmuxError = kind(value["message"])
    return found


def done_frame(job: EngineJob) -> bytes:
    """DONE for a finished job; texts that share one error object share its message."""
    payload = DONE.pack(job.id, job.began, time.monotonic())
    if job.errors:
        payload += json.dumps([[index, error_to_json(error)] for index, error in job.errors.items()]).encode()
    return frame(Kind.DONE, payload)


def parse_done(payload: bytes) -> tuple[int, Done]:
    """DONE's job id, and the rest."""
    job_id, began, ended = DONE.unpack_from(payload)
    body = payload[DONE.size :]
    errors = {index: error_from_json(error) for index, error in json.loads(body)} if body else {}
    return job_id, Done(errors, began, ended)
