"""The engine process: torch and the device, no grpc. Reads frames, feeds the engine, answers frames.

Started by the supervisor as ``python -m embedmux.server.bridge.child SOCKET MEMORY BOARD LISTENER CONFIG``: four file
descriptors and JSON. The first front has the socket; others come through the listener and bring memory of their own. It
ends when the first front says so (CLOSE) or its end of the socket closes, so it never outlives the server.
"""

import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from embedmux.server import logs
from embedmux.server.bridge.board import BOARD_BYTES, Board
from embedmux.server.bridge.frames import (
    JOB_ID,
    FrameReader,
    JobBlock,
    Kind,
    done_frame,
    error_to_json,
    json_frame,
    parse_submit,
)
from embedmux.server.config import EngineConfig
from embedmux.server.errors import EmbedmuxError, EngineFailure, ModelRejected
from embedmux.server.records import EngineJob
from embedmux.server.runtime import Runtime

logger = logging.getLogger(__name__)
RECEIVE_BYTES = 1 << 18
SEND_TIMEOUT_S = 10
BEAT_S = 0.25
REPORT_S = 1.0


class FrontConnection:
    """One front: its socket, its memory, the jobs it has not been answered yet."""

    def __init__(self, connection: socket.socket, memory_file: int, process: "EngineProcess") -> None:
        # A front that is stopped must not stop the engine with it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._connection = connection
        self._memory = memoryview(mmap.mmap(memory_file, 0))
        os.close(memory_file)
        self._process = process
        self._jobs: dict[int, EngineJob] = {}
        self._send_lock = threading.Lock()

    def serve(self) -> bool:
        """Handles frames until CLOSE (True) or until the front is gone; what it still waited for is dropped then."""
        reader = FrameReader()
        while data := self._receive():
            for kind, payload in reader.feed(data):
                if kind is Kind.SUBMIT:
                    self._submit(payload)
                elif kind is Kind.CANCEL:
                    if (job := self._jobs.get(JOB_ID.unpack(payload)[0])) is not None:
                        self._process.runtime.engine.cancel(job)
                elif kind is Kind.CALL:
                    self._process.call(json.loads(payload), self)
                elif kind is Kind.OPEN:
                    self._process.open()
                elif kind is Kind.CLOSE:
                    return True
        for job in list(self._jobs.values()):
            self._process.runtime.engine.cancel(job)
        return False

    def send(self, data: bytes) -> None:
        """Writes one frame; called from the device thread, the calls' thread and the receiving thread."""
        with self._send_lock:
            try:
                self._connection.sendall(data)
            except OSError as error:  # it is gone, or took nothing for so long: the receiving thread ends with it
                logger.debug("a front is lost: %s", error)
                self.shut()

    def shut(self) -> None:
        """Nothing more is sent or received."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(RECEIVE_BYTES)
        except OSError:
            return b""

    def _submit(self, payload: bytes) -> None:
        job_id, start, num_texts, num_tokens, model, output, terms = parse_submit(payload)
        block = JobBlock(self._memory, start, num_texts, num_tokens, output)
        job = EngineJob(
            id=job_id,
            token_ids=block.token_ids,
            offsets=block.offsets,
            adapters=block.adapters,
            output=output,
            terms=terms,
            out=block.out,
            shared=block.shared,
            second=block.second,
            model=model,
        )
        self._jobs[job_id] = job
        self._process.runtime.engine.submit(job, self._done)

    def _done(self, jobs: list[EngineJob]) -> None:
        for job in jobs:
            self._jobs.pop(job.id, None)
        self.send(b"".join(map(done_frame, jobs)))


class EngineProcess:
    """The runtime and the fronts it answers."""

    def __init__(self, runtime: Runtime, listener: socket.socket) -> None:
        self.runtime = runtime
        self._listener = listener
        self._fronts: list[FrontConnection] = []
        self._lock = threading.Lock()
        # Loads read and check files: off the receiving threads, so that texts flow meanwhile; one at a time.
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="embedmux-calls")
        threading.Thread(target=self._report, name="embedmux-report", daemon=True).start()

    def serve(self, connection: socket.socket, memory_file: int) -> None:
        """Serves the first front until it says CLOSE (drains) or is gone (ends at once)."""
        front = self._joined(connection, memory_file)
        if not front.serve():
            os._exit(1)  # nobody is left to answer; a batch in flight must not keep the process alive
        self._calls.shutdown()
        self.runtime.engine.close()
        front.shut()

    def open(self) -> None:
        """Takes other fronts from now on: every adapter is in service again."""
        threading.Thread(target=self._accept, name="embedmux-accept", daemon=True).start()

    def call(self, call: dict[str, Any], front: FrontConnection) -> None:
        """Runs a call of a front in its turn and answers it."""
        self._calls.submit(self._call, call, front)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, 1)
            if not files:  # it ended before it had said what it is
                connection.close()
                continue
            front = self._joined(connection, files[0])
            threading.Thread(target=self._serve_other, args=(front,), name="embedmux-front", daemon=True).start()

    def _joined(self, connection: socket.socket, memory_file: int) -> FrontConnection:
        """A new front, told what is served; from now on it hears of changes."""
        front = FrontConnection(connection, memory_file, self)
        with self._lock:  # no change may fall between what it is told now and the first it hears of
            front.send(json_frame(Kind.READY, self.runtime.facts()))
            self._fronts.append(front)
        return front

    def _serve_other(self, front: FrontConnection) -> None:
        front.serve()
        with self._lock:
            self._fronts.remove(front)

    def _tell(self, data: bytes) -> None:
        for front in list(self._fronts):
            front.send(data)

    def _report(self) -> None:
        """Says now and then what was done."""
        while True:
            self._tell(json_frame(Kind.STATS, {**self.runtime.snapshot(), "at": time.monotonic()}))
            time.sleep(REPORT_S)

    def _call(self, call: dict[str, Any], front: FrontConnection) -> None:
        try:
            result: Any = None
            if call["method"] == "load_adapter":
                result = asdict(self.runtime.load_adapter(**call["arguments"]))
            elif call["method"] == "unload_adapter":
                self.runtime.unload_adapter(**call["arguments"])
            else:
                raise EngineFailure(f"the engine has no method {call['method']!r}")
            with self._lock:
                place = call["arguments"]["model"]
                self._tell(json_frame(Kind.ADAPTERS, {"model": place, "adapters": self.runtime.adapters(place)}))
            answer = {"id": call["id"], "result": result}
        except EmbedmuxError as error:
            answer = {"id": call["id"], "error": error_to_json(error)}
        except Exception as error:
            logger.exception("call %s failed", call["method"])
            failure = EngineFailure(f"{call['method']} failed: {type(error).__name__}: {error}")
            answer = {"id": call["id"], "error": error_to_json(failure)}
        front.send(json_frame(Kind.ANSWER, answer))


def beat(board: Board) -> None:
    """Says that the process runs, from before it has loaded anything."""
    while True:
        board.beat()
        time.sleep(BEAT_S)


def main() -> None:
    """Loads the models, says READY or FAILED, then serves."""
    socket_fd, memory_fd, board_fd, listen_fd = map(int, sys.argv[1:5])
    config = EngineConfig.from_json(sys.argv[5])
    logs.configure("engine", config.log_format)
    # A terminal sends its signals to the whole group; the front decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A thread that dies would leave a process that looks alive and answers nothing; a restart is better.
    threading.excepthook = _end_process
    connection = socket.socket(fileno=socket_fd)
    board = Board(mmap.mmap(board_fd, BOARD_BYTES))
    threading.Thread(target=beat, args=(board,), name="embedmux-beat", daemon=True).start()
    try:
        runtime = Runtime(config, board)
    except EmbedmuxError as error:
        connection.sendall(json_frame(Kind.FAILED, error_to_json(error)))
        sys.exit(1)
    except Exception as error:
        logger.exception("the model did not load")
        names = ", ".join(model.name for model in config.models)
        failure = ModelRejected(f"{names} did not load: {type(error).__name__}: {error}")
        connection.sendall(json_frame(Kind.FAILED, error_to_json(failure)))
        sys.exit(1)
    EngineProcess(runtime, socket.socket(fileno=listen_fd)).serve(connection, memory_fd)


def _end_process(failure: threading.ExceptHookArgs) -> None:
    logger.critical("thread %s failed", failure.thread, exc_info=failure.exc_value)
    os._exit(70)


if __name__ == "__main__":
    main()
