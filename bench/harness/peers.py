"""Other libraries beside ours in one run, in an environment and a process of their own.

``build/peers`` is made on first use from bench/peers/requirements.txt; bench/peers/worker.py answers there.
"""

from __future__ import annotations

import json
import os
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
ENVIRONMENT = Path(__file__).parents[2] / "build" / "peers"


class Peers:
    """The worker process; use it as a context manager."""

    def __init__(self, python: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [str(python), str(HERE / "worker.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")},
        )  # fmt: skip

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

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
            raise RuntimeError(f"the peers' process ended with {self._process.wait()} at {request}")
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


def open_peers() -> Peers | None:
    """The worker, its environment made if need be; None, with the reason printed, where that fails."""
    python = ENVIRONMENT / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / "requirements.txt"
    try:
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making {ENVIRONMENT.name} environment for the peers ...", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
            stamp.write_text(wanted)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no peers to compare with: {error}", file=sys.stderr)
        return None
    return Peers(python)


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
