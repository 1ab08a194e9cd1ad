"""``embedmux demo``: a server, one request that mixes four tasks, and what comes back."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.client.texts import Text
from embedmux.client.vectors import Embeddings
from embedmux.server.cli import console
from embedmux.server.errors import DeadlineExceeded, EngineFailure, SpaceMismatch, Unavailable
from embedmux.server.records import Space

START_LIMIT_S = 180.0
STOP_LIMIT_S = 45.0
LOG_LINES = 8
STEP_S = 0.1  # between looks at the child while it starts
OTHER_COLUMNS = 48  # their widths and all gaps
TEXTS = [
    Text("how do plants turn sunlight into food", task="retrieval", role="query"),
    Text("why does the moon stay in its orbit", task="retrieval", role="query"),
    Text("Leaves use light to build sugar from water and carbon dioxide.", task="retrieval", role="document"),
    Text("Gravity bends the path of the Moon around the Earth.", task="retrieval", role="document"),
    Text("The meeting was moved to Friday.", task="text-matching"),
    Text("They postponed our appointment to the end of the week.", task="text-matching"),
    Text("A cat sleeps on the warm roof.", task="text-matching"),
    Text("My card was charged twice for one order.", task="classification"),
    Text("I was billed two times, please give the money back.", task="classification"),
    Text("How can I change my password?", task="classification"),
    Text("New telescope maps the oldest galaxies", task="clustering"),
    Text("Probe sends first pictures of a comet", task="clustering"),
    Text("Late goal decides the cup final", task="clustering"),
]


def demo(
    *,
    model: str = "minilm",
    adapters: Path | None = None,
    allow_reference: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """See it work: start a server, embed four tasks in one request, stop the server.

    Prints for every text its task, its space and its nearest neighbour there, and what happens to a comparison that
    would mean nothing.

    Parameters
    ----------
    model
        What to serve, as for `embedmux serve`.
    adapters
        Folder of adapters for the four tasks; default: those shipped for a packaged model.
    allow_reference
        Run even where the compiled kernels are missing; slow.
    """
    screen = console.output()
    arguments = ["--model", model]
    arguments += ["--adapters", str(adapters)] if adapters else []
    arguments += ["--allow-reference"] if allow_reference else []
    with running_server(arguments, screen) as server:
        with Client(server.address) as client:
            show_request(client, screen)
        stop(server, screen)


def show_request(client: Client, screen: Console) -> None:
    """Sends all texts at once and prints what they are to each other."""
    client.embed(TEXTS)  # the first request of a process pays for memory and threads that later ones find ready
    started = time.monotonic()
    embeddings = client.embed(TEXTS)
    milliseconds = (time.monotonic() - started) * 1000
    num_tasks = len({text.task for text in TEXTS})
    tokens = int(embeddings.num_tokens.sum())
    screen.print(
        f"\n{len(TEXTS)} texts, {num_tasks} tasks, {tokens} tokens in one request: "
        f"{milliseconds:.0f} ms, {embeddings.dimensions} dimensions each\n"
    )
    # The two columns of texts share what the others leave of the screen.
    text_width = min(64, (screen.width - OTHER_COLUMNS) // 2)
    table = Table("task, role", "text", "tokens", "space", "nearest", "cosine", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[2].justify = table.columns[5].justify = "right"
    for index, text in enumerate(TEXTS):
        other, cosine = nearest(embeddings, index)
        table.add_row(
            f"{text.task} {text.role or ''}",
            console.shorten(text.text, text_width),
            str(embeddings.num_tokens[index]),
            digest(embeddings.spaces[index]),
            console.shorten(TEXTS[other].text, text_width),
            f"{cosine:.2f}",
            end_section=index + 1 < len(TEXTS) and TEXTS[index + 1].task != text.task,
        )
    screen.print(table)
    try:
        embeddings[0].similarity(embeddings[-1])
    except SpaceMismatch as error:
        screen.print("Across spaces a comparison is refused: ", style="bold", end="")
        screen.print(str(error), soft_wrap=True)


def digest(space: Space | None) -> str:
    """The start of the part of a space's id that no other space has; the task stands beside it."""
    return "" if space is None else space.id.rpartition("-")[2][:4]


def nearest(embeddings: Embeddings, index: int) -> tuple[int, float]:
    """The closest other text of the same space, and its similarity; a query is compared with documents only."""
    text = TEXTS[index]
    rivals = [
        other
        for other, rival in enumerate(TEXTS)
        if other != index
        and embeddings.spaces[other] == embeddings.spaces[index]
        and (text.role is None or rival.role != text.role)
    ]
    similarities = embeddings[index].similarity(embeddings[rivals])[0]
    best = int(np.argmax(similarities))
    return rivals[best], float(similarities[best])


@dataclass(slots=True)
class Child:
    """A server in a process of its own; ``address`` is empty until it listens."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""


@contextmanager
def running_server(arguments: list[str], screen: Console) -> Iterator[Child]:
    """A server that serves, started with ``arguments``; it is not left behind whatever happens."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="embedmux-demo-") as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "server.log"
        command = [sys.executable, "-P", "-m", "embedmux.server.cli", "serve", *arguments]
        command += ["--address", "127.0.0.1:0", "--port-file", str(port_file)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        child = Child(process, log)
        try:
            with screen.status("starting a server ..."):
                while not (port_file.exists() and port_file.read_text().endswith("\n")):
                    wait_a_step(child, started)
                child.address = f"127.0.0.1:{port_file.read_text().strip()}"
                with Client(child.address) as client:
                    while not is_serving(client):
                        wait_a_step(child, started)
            screen.print(f"A server runs at {child.address}; it took {time.monotonic() - started:.1f} s to start.")
            yield child
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def is_serving(client: Client) -> bool:
    """Whether the server serves within a second."""
    try:
        client.wait_until_serving(timeout=1.0)
    except DeadlineExceeded:
        return False
    return True


def wait_a_step(child: Child, started: float) -> None:
    """Returns while the server may still come up; raises Unavailable with the end of its log when it will not."""
    try:
        child.process.wait(timeout=STEP_S)
        reason = f"ended with exit code {child.process.returncode}"
    except subprocess.TimeoutExpired:
        if time.monotonic() - started < START_LIMIT_S:
            return
        reason = f"does not serve after {START_LIMIT_S:g} s"
    raise Unavailable(f"the server {reason}; the end of its log:\n{log_end(child.log)}")


def stop(child: Child, screen: Console) -> None:
    """Ends the server as an operator would, and says how it went."""
    started = time.monotonic()
    child.process.terminate()
    try:
        child.process.wait(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the server has not stopped {STOP_LIMIT_S:g} s after SIGTERM, so it was killed") from None
    code = child.process.returncode
    if code != 0:
        raise EngineFailure(f"the server ended with exit code {code} after SIGTERM; its log:\n{log_end(child.log)}")
    screen.print(f"\nThe server stopped cleanly {time.monotonic() - started:.1f} s after SIGTERM.")


def log_end(log: Path) -> str:
    """The last lines of the server's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
