"""A run spread over worker processes, since one Python process sends 1,000 to 3,000 requests a second.

The caller's process only watches, so that its progress bar does not take the generator's time. Even a load of one
process has a worker. Both sides speak over a pipe: the worker says Ready, gets the moment of the start, says Progress
twice a second, and at last its Answers. Anything sent to it after the start, or the pipe's end, stops it early.
"""

import asyncio
import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from embedmux.client.load.answers import Answers, merge
from embedmux.client.load.generate import generate
from embedmux.client.load.plan import Plan
from embedmux.client.load.sender import Sender
from embedmux.server.errors import EmbedmuxError

PROGRESS_S = 0.5
HEAD_START_S = 0.1  # from the word to all workers until second 0
SWITCH_INTERVAL_S = 0.0005  # the thread that keeps the times would else wait 5 ms for the interpreter lock
STOP = "stop"


class LoadFailed(EmbedmuxError):
    """A worker process that could not send its part."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker is connected."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker cannot go on, and why."""

    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker has done so far: answers of all kinds, those that were OK, requests under way."""

    num_answered: int = 0
    num_ok: int = 0
    num_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run; ``is_interrupted`` if Ctrl-C ended it early."""

    answers: Answers
    is_interrupted: bool


def run(plan: Plan, watch: Callable[[Progress], None] = lambda progress: None) -> Run:
    """Sends ``plan`` and returns what came back; ``watch`` sees the sum of all workers twice a second.

    Ctrl-C stops sending, and what was measured until then is returned; a second one raises KeyboardInterrupt. Raises
    LoadFailed for a worker that cannot connect or dies.
    """
    workers = [Worker(part) for part in plan.parts()]
    try:
        for worker in workers:
            worker.expect(Ready)
        start = time.perf_counter() + HEAD_START_S
        for worker in workers:
            worker.pipe.send(start)
        with interrupts(workers) as interrupted:
            pending = {worker.pipe: worker for worker in workers}
            while pending:
                for pipe in wait(list(pending)):
                    worker = next(worker for worker in workers if worker.pipe is pipe)
                    if worker.read():
                        del pending[worker.pipe]
                watch(total([worker.progress for worker in workers]))
            return Run(merge([worker.answers for worker in workers if worker.answers]), bool(interrupted))
    finally:
        for worker in workers:
            worker.end()


class Worker:
    """One worker process, seen from the caller's."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.progress = Progress()
        self.answers: Answers | None = None
        self._process: BaseProcess = context.Process(target=work, args=(plan, child_pipe), daemon=True)
        with ignored_interrupts():  # Ctrl-C goes to all processes of a terminal; a worker waits for the caller's word
            self._process.start()
        child_pipe.close()

    def expect(self, kind: type[Any]) -> Any:
        """The next message, of this kind. Raises LoadFailed for a worker that failed or is gone."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise LoadFailed(
                f"a load process ended with exit code {self._process.exitcode}; its own words stand above"
            ) from None
        if isinstance(message, Failed):
            raise LoadFailed(message.message)
        assert isinstance(message, kind), f"a worker sent {message!r}, not {kind}"
        return message

    def read(self) -> bool:
        """Takes one message; true when it was the last."""
        message = self.expect(Progress | Answers)  # type: ignore[arg-type]  # isinstance takes unions
        if isinstance(message, Progress):
            self.progress = message
            return False
        self.answers = message
        return True

    def stop(self) -> None:
        """Asks the worker to end early."""
        with contextlib.suppress(OSError):  # it may be done
            self.pipe.send(STOP)

    def end(self) -> None:
        """Ends the process, if it has not ended."""
        self.pipe.close()
        self._process.join(1.0 if self.answers else 0.0)
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def interrupts(workers: list[Worker]) -> Iterator[list[int]]:
    """Within it the first Ctrl-C stops the workers and is noted in the list; the next one raises as ever."""
    caught: list[int] = []

    def stop(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        for worker in workers:
            worker.stop()

    with handler(stop):
        yield caught


def ignored_interrupts() -> contextlib.AbstractContextManager[None]:
    """Within it Ctrl-C does nothing, and processes that are started never hear it."""
    return handler(signal.SIG_IGN)


@contextlib.contextmanager
def handler(action: Any) -> Iterator[None]:
    """Within it Ctrl-C does ``action``; only a process's main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def total(parts: list[Progress]) -> Progress:
    """The sum of what the workers did."""
    return Progress(
        sum(part.num_answered for part in parts),
        sum(part.num_ok for part in parts),
        sum(part.num_in_flight for part in parts),
    )


def work(plan: Plan, pipe: Connection) -> None:
    """A worker process's main."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the caller is gone, and nobody wants the answers
        asyncio.run(work_on(plan, pipe))


async def work_on(plan: Plan, pipe: Connection) -> None:
    """Connects, waits for the start, sends, and reports over ``pipe``."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    sender = Sender(plan)
    try:
        try:
            await sender.connect()
        except EmbedmuxError as error:
            pipe.send(Failed(str(error)))
            return
        pipe.send(Ready())
        started = await loop.run_in_executor(None, pipe.recv)

        def stopped() -> None:
            loop.remove_reader(pipe.fileno())
            stop.set()

        loop.add_reader(pipe.fileno(), stopped)
        reporting = asyncio.ensure_future(report(sender, pipe))
        answers = await generate(plan, sender, started=started, stop=stop)
        reporting.cancel()
        loop.remove_reader(pipe.fileno())
        pipe.send(answers)
    finally:
        await sender.close()


async def report(sender: Sender, pipe: Connection) -> None:
    """Says how far the worker is, from time to time."""
    while True:
        await asyncio.sleep(PROGRESS_S)
        pipe.send(Progress(len(sender.tally.code), sender.tally.num_ok, sender.in_flight))
