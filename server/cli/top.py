"""``embedmux top``: what a running server does, second by second, from its metrics."""

from __future__ import annotations

import threading
from collections import deque
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group
from rich.live import Live
from rich.text import Text

from embedmux.server.cli import console
from embedmux.server.cli.scrape import Scrape, scrape
from embedmux.server.cli.top_view import view
from embedmux.server.errors import Unavailable

REFRESH_S = 1.0
WINDOW = 5  # scrapes: the engine counts once a second, so that one second alone would flicker
ONCE_S = 1.25  # a second, and what the engine's report may be late by


def top(metrics_address: str = "localhost:9464", /, *, once: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Watch a running server: rates, latencies, queue, batches, refusals, tenants.

    It reads the server's metrics, so the server needs one option: `embedmux serve --metrics-address :9464`. Rates and
    latencies are those of the last seconds. Ctrl-C ends it.

    Examples:

        embedmux top

        embedmux top embeddings.example:9464

        embedmux top --once

    Parameters
    ----------
    metrics_address
        HOST:PORT of the server's metrics.
    once
        Print one view, of one second, and end.
    """
    first = scrape(metrics_address)
    pause = threading.Event()
    if once:
        pause.wait(ONCE_S)
        console.output().print(view(metrics_address, scrape(metrics_address), first))
        return
    kept = deque([first], WINDOW)
    screen = console.output()
    with Live(
        view(metrics_address, first, first), console=screen, auto_refresh=False, screen=screen.is_terminal
    ) as live:
        try:
            while True:
                pause.wait(REFRESH_S)
                live.update(_next(metrics_address, kept), refresh=True)
        except KeyboardInterrupt:  # how one ends it
            return


def _next(address: str, kept: deque[Scrape]) -> Group:
    """The view of now; of the last answer, and why there is none, while the server is away."""
    trouble = ""
    oldest = kept[0]
    try:
        kept.append(scrape(address))
    except Unavailable as error:
        trouble = str(error)
    shown = view(address, kept[-1], oldest)
    return Group(Text(trouble, style="bold red"), shown) if trouble else shown
