"""The engine process: torch and the device, no grpc. Reads frames, feeds the engine, answers frames.

Started by the supervisor as ``python -m embedmux.server.bridge.child SOCKET_FD MEMORY_FD CONFIG_JSON``. It ends when it
is told to (CLOSE) or when the front's end of the socket closes, so it never outlives the front.
"""

import json
import logging
import mmap
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

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


class EngineProcess:
    """One front's connection, and the runtime behind it."""

    def __init__(self, connection: socket.socket, memory: mmap.mmap, runtime: Runtime) -> None:
        self._connection = connection
        self._memory = memoryview(memory)
        self._runtime = runtime
        self._jobs: dict[int, EngineJob] = {}
        self._send_lock = threading.Lock()
        # Loads read and check files: off the receiving thread, so that texts flow meanwhile; one at a time.
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="embedmux-calls")

    def serve(self) -> None:
        """Handles frames until CLOSE (drains first) or the front is gone (ends at once)."""
        reader = FrameReader()
        while data := self._connection.recv(RECEIVE_BYTES):
            for kind, payload in reader.feed(data):
                if kind is Kind.SUBMIT:
                    self._submit(payload)
                elif kind is Kind.CANCEL:
                    if (job := self._jobs.get(JOB_ID.unpack(payload)[0])) is not None:
                        self._runtime.engine.cancel(job)
                elif kind is Kind.CALL:
                    self._calls.submit(self._call, json.loads(payload))
                elif kind is Kind.CLOSE:
                    self._calls.shutdown()
                    self._runtime.engine.close()
                    return
        # Nobody is left to answer; a batch in flight must not keep the process alive.
        os._exit(1)

    def send(self, data: bytes) -> None:
        """Writes one frame; called from the device thread, the calls' thread and the receiving thread."""
        with self._send_lock:
            try:
                self._connection.sendall(data)
            except OSError:  # the front is gone: the receiving thread sees the same and ends the process
                logger.debug("the front closed the connection")

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
        self._runtime.engine.submit(job, self._done)

    def _done(self, job: EngineJob) -> None:
        self._jobs.pop(job.id, None)
        self.send(done_frame(job))

    def _call(self, call: dict[str, Any]) -> None:
        try:
            if call["method"] == "load_adapter":
                result: Any = asdict(self._runtime.load_adapter(**call["arguments"]))
            elif call["method"] == "unload_adapter":
                self._runtime.unload_adapter(**call["arguments"])
                result = None
            else:
                raise EngineFailure(f"the engine has no method {call['method']!r}")
            answer = {"id": call["id"], "result": result}
        except EmbedmuxError as error:
            answer = {"id": call["id"], "error": error_to_json(error)}
        except Exception as error:
            logger.exception("call %s failed", call["method"])
            failure = EngineFailure(f"{call['method']} failed: {type(error).__name__}: {error}")
            answer = {"id": call["id"], "error": error_to_json(failure)}
        self.send(json_frame(Kind.ANSWER, answer))


def main() -> None:
    """Loads the model, says READY or FAILED, then serves."""
    socket_fd, memory_fd, config = int(sys.argv[1]), int(sys.argv[2]), EngineConfig.from_json(sys.argv[3])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    # A terminal sends its signals to the whole group; the front decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A thread that dies would leave a process that looks alive and answers nothing; a restart is better.
    threading.excepthook = _end_process
    connection = socket.socket(fileno=socket_fd)
    memory = mmap.mmap(memory_fd, 0)
    try:
        runtime = Runtime(config)
    except EmbedmuxError as error:
        connection.sendall(json_frame(Kind.FAILED, error_to_json(error)))
        sys.exit(1)
    except Exception as error:
        logger.exception("the model did not load")
        names = ", ".join(model.name for model in config.models)
        failure = ModelRejected(f"{names} did not load: {type(error).__name__}: {error}")
        connection.sendall(json_frame(Kind.FAILED, error_to_json(failure)))
        sys.exit(1)
    process = EngineProcess(connection, memory, runtime)
    facts = [
        {"model": asdict(model.info), "adapters": [asdict(info) for info in model.registry.list()]}
        for model in runtime.models
    ]
    process.send(json_frame(Kind.READY, facts))
    process.serve()
    connection.shutdown(socket.SHUT_RDWR)


def _end_process(failure: threading.ExceptHookArgs) -> None:
    logger.critical("thread %s failed", failure.thread, exc_info=failure.exc_value)
    os._exit(70)


if __name__ == "__main__":
    main()
