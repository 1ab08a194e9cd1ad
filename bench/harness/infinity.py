"""infinity-emb beside us: another server of embeddings, over HTTP, as its users start it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedmux.server.models import find_model
from harness.http_load import post
from harness.peers import INFINITY, python_of

START_S = 300
CONNECTIONS = 64
NAME = "minilm"
# Nothing leaves this machine: no statistics of use, no look-ups of models.
QUIET = {
    "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}  # fmt: skip


def infinity_rate(dtype: str, texts: Sequence[str], seconds: float) -> float | None:
    """Requests a second of one text each at 64 clients, MiniLM in "float32" or "bfloat16"; None without infinity.

    Each text is sent once, the first tenth to warm up: they must suffice for the seconds, at some 500 a second.
    Raises RuntimeError if the server does not start or answers anything but 200.
    """
    python = python_of(INFINITY)
    if python is None:
        return None
    bodies = [json.dumps({"input": [text], "model": NAME}).encode() for text in texts]
    num_first = len(bodies) // 10
    with infinity_serving(python, dtype) as address:
        post(address, "/embeddings", bodies[:num_first], connections=CONNECTIONS, seconds=seconds)
        found = post(address, "/embeddings", bodies[num_first:], connections=CONNECTIONS, seconds=seconds)
    if set(found.statuses) != {200}:
        raise RuntimeError(f"infinity answered {sorted(set(found.statuses))}")
    return found.rate


@contextlib.contextmanager
def infinity_serving(python: Path, dtype: str) -> Iterator[str]:
    """The address of infinity_emb with MiniLM under the name "minilm", once it serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(python.with_name("infinity_emb")), "v2", "--engine", "torch", "--device", "cpu", "--dtype", dtype,
        "--no-bettertransformer", "--model-id", str(find_model("minilm")), "--served-model-name", NAME,
        "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    # It leaves a cache where it runs.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment | QUIET)
        try:
            _wait_for(process, port)
            yield f"127.0.0.1:{port}"
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}; infinity's log:\n{log.read().decode(errors='replace')[-4000:]}") from error
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(10 * START_S):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"infinity ended with {process.returncode} while starting")
    raise RuntimeError(f"infinity did not listen within {START_S} s")
