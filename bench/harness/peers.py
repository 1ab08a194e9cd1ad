"""Other libraries beside ours in one run, in environments and processes of their own.

An environment is made on first use from its requirements in bench/peers; bench/peers/worker.py answers there.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HERE = Path(__file__).parents[1] / "peers"
BUILD = Path(__file__).parents[2] / "build"


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder below build/, its requirements in bench/peers, and the module of contenders that runs there, if any.

    ``alone`` names requirements that are installed without what they depend on.
    """

    folder: str
    requirements: str
    module: str | None = None
    alone: str | None = None


KERNELS = Environment("peers", "requirements.txt", "contenders")
EMBEDDERS = Environment("peers-embedders", "embedders.txt", "embedders")
INFINITY = Environment("peers-infinity", "infinity.txt")
VLLM = Environment("peers-vllm", "vllm.txt", "vllm_embedder", alone="vllm-alone.txt")


class Peers:
    """The worker process; use it as a context manager."""

    def __init__(self, python: Path, module: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")},
        )  # fmt: skip

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # with processes of its own, such as vLLM's
        self._process.wait()
        self._folder.cleanup()

    def build(self, contender: str, **options: Any) -> Peer:
        """A contender of the worker's module, built there from plain values."""
        return Peer(self, self.ask({"build": contender, "options": options})["number"])

    def make(self, contender: str, *, threads: int, **arrays: np.ndarray) -> Peer:
        """A contender of bench/peers/contenders.py, built in the worker from these arrays."""
        files = {}
        for name, array in arrays.items():
            files[name] = str(Path(self._folder.name) / f"{name}.npy")
            np.save(files[name], array)
        number = self.ask({"make": contender, "arrays": files, "threads": threads})["number"]
        for file in files.values():
            os.unlink(file)
        return Peer(self, number)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request to the worker; raises RuntimeError when it has died (its words are on standard error)."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process ended with {self._process.wait()} at {str(request)[:200]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def result(self, number: int) -> tuple[np.ndarray, ...]:
        """What a contender's last run returned."""
        path = Path(self._folder.name) / "result.npz"
        self.ask({"result": number, "file": str(path)})
        with np.load(path) as found:
            return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender in the worker."""

    peers: Peers
    number: int

    def seconds(self, clock: str = "wall") -> float:
        """Runs it once; "wall" or, for one thread, "cpu": what other programs take is not in it."""
        return float(self.peers.ask({"run": self.number})[clock])

    def result(self) -> tuple[np.ndarray, ...]:
        """What the last run returned."""
        return self.peers.result(self.number)


def open_peers(environment: Environment = KERNELS) -> Peers | None:
    """The worker, its environment made if need be; None, with the reason printed, where that fails."""
    assert environment.module is not None
    python = python_of(environment)
    return Peers(python, environment.module) if python is not None else None


def python_of(environment: Environment) -> Path | None:
    """The environment's interpreter, made if need be; None, with the reason printed, where that fails."""
    folder = BUILD / environment.folder
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    files = [HERE / name for name in (environment.requirements, environment.alone) if name is not None]
    wanted = "".join(file.read_text() for file in files)
    try:
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making build/{environment.folder} for the peers, some minutes ...", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            for file, options in zip(files, ([], ["--no-deps"]), strict=False):
                subprocess.run([*pip, *options, "-r", str(file)], check=True)
            stamp.write_text(wanted)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no peers to compare with: {error}", file=sys.stderr)
        return None
    return python


def speed_over_peer(
    ours: Callable[[], object], peer: Peer, *, rounds: int, clock: str = "wall", warmup: int = 2
) -> tuple[float, float, float]:
    """(median of a round's peer seconds / our seconds, our median seconds, the peer's): the two take turns.

    clock "wall", or "cpu" for one thread on both sides.
    """
    now = time.perf_counter if clock == "wall" else time.thread_time
    mine, others = [], []
    for turn in range(rounds + warmup):
        other = peer.seconds(clock)
        start = now()
        ours()
        if turn >= warmup:
            mine.append(now() - start)
            others.append(other)
    ratios = [other / own for own, other in zip(mine, others, strict=True)]
    return statistics.median(ratios), statistics.median(mine), statistics.median(others)
