"""Servers, adapters and texts of the end-to-end tests. A plain module: conftest.py loads it by its path."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from numpy.typing import NDArray

from embedmux.client.blocking import Client
from embedmux.client.stubs import make_stubs
from embedmux.proto import embed_pb2, types_pb2

START_S = 180.0  # machines that run these tests may be busy with others
WAIT_S = 60.0
STEP_S = 0.02

# Each is one token of the vocabulary, so that a text of n words has n + 2 tokens.
WORDS = tuple(
    re.findall(
        r"\w+",
        """
        river mountain paper engine garden window coffee signal market doctor winter summer forest bridge captain
        letter island castle silver copper engineer student teacher library kitchen music painting history science
        water fire stone road train station village city country house door table chair book story poem song dance
        light dark morning evening night day week month year hour minute second number answer question problem
        the a of and to in with for from by slowly quickly never always often here there green blue red white black
        """,
    )
)
ODD_TEXTS = (
    " ",
    "x",
    "Ünïcödé, naïve café – «quotes»",
    "日本語のテキスト と 漢字",
    "🙂🚀 emoji \U0001f9d1‍\U0001f680 joined",
    "a\tb\nc\r\nd\u00a0e\u200bf",
    "https://example.org/path?query=1&other=%20#part",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}",
    "0123456789 3.14159 1e-12 -7/8 $5,000.00",
    "[CLS] [SEP] [MASK] [PAD] are special",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Привет, мир! שלום عالم",
)


def text_of(num_tokens: int, generator: random.Random) -> str:
    """A text that has exactly ``num_tokens`` tokens, the two special ones included."""
    return " ".join(generator.choices(WORDS, k=num_tokens - 2))


def texts_of(count: int, *, seed: int, longest: int = 200) -> list[str]:
    """``count`` texts of 3 to ``longest`` tokens, both among them; most are short, as most texts of a server are."""
    generator = random.Random(seed)
    lengths = [3, longest, *(round(3 * (longest / 3) ** generator.random()) for _ in range(count - 2))]
    return [text_of(length, generator) for length in lengths]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of ``condition``; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not so after {timeout_s} s"
        time.sleep(STEP_S)
    return value


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """[n, d] and [n, d] -> the cosine of each pair of rows, in float64."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    products: NDArray[np.float64] = (one * other).sum(1)
    return products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def embed_request(*texts: str, **fields: Any) -> embed_pb2.EmbedRequest:
    """A request as it travels, without the checks of the client."""
    instruction = {name: fields.pop(name) for name in ("task", "role", "adapter", "prompt_name") if name in fields}
    return embed_pb2.EmbedRequest(
        texts=[embed_pb2.Text(text=text) for text in texts],
        instruction=types_pb2.Instruction(**instruction) if instruction else None,
        **fields,
    )


@dataclass
class Served:
    """An ``embedmux serve`` in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str
    _channels: list[grpc.Channel] = field(default_factory=list)

    def client(self, **options: Any) -> Client:
        """A client; the caller closes it."""
        return Client(self.address, **{"timeout": START_S, **options})

    def stubs(self) -> Any:
        """gRPC's own stubs on a new connection without retries, which ends with the server."""
        channel = grpc.insecure_channel(
            self.address, [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        )
        self._channels.append(channel)
        return make_stubs(channel)

    def engine(self) -> psutil.Process | None:
        """The engine process, None while there is none."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if "embedmux.server.bridge.child" in child.cmdline():
                        return child
        return None

    def stop(self) -> int:
        """Asks the server to drain and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """Ends the server whatever state it is in."""
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, ready: bool = True, python: str | Path = sys.executable, **process_options: Any
) -> Iterator[Served]:
    """A server whose log and port file lie in ``folder``; it serves already unless ``ready`` is off."""
    folder.mkdir(parents=True, exist_ok=True)
    port_file, log = folder / "port", folder / "log"
    command = [str(python), "-m", "embedmux.server.cli", "serve", "--address", "127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port-file", str(port_file), *arguments], stdout=output, stderr=output, **process_options
        )
    served = Served(process, log, "")
    try:

        def port() -> str:
            assert process.poll() is None, f"the server ended while starting:\n{log.read_text()}"
            content = port_file.read_text() if port_file.exists() else ""
            return content.strip() if content.endswith("\n") else ""

        served.address = f"127.0.0.1:{wait_for(port, 'the server listens', START_S)}"
        if ready:
            with served.client() as client:
                client.wait_until_serving(START_S)
        yield served
    finally:
        served.close()
