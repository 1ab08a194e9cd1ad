"""What a person sees: where results and messages go, and how long things are shown in a line."""

import sys

from rich.console import Console
from rich.markup import escape

PIPED_WIDTH = 160  # nobody looks at a pipe; 80 columns would cut what a script may want


class WrongUsage(Exception):
    """A command line that cannot be meant; exit code 2."""


def output() -> Console:
    """Results, on stdout. Markup is off: texts and messages may hold brackets."""
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def messages() -> Console:
    """Progress, summaries and errors, on stderr."""
    return Console(stderr=True, markup=False, highlight=False, width=None if sys.stderr.isatty() else PIPED_WIDTH)


def fail(message: str) -> None:
    """One line that says why the command failed."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def shorten(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, without control characters."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def short_space(space: str) -> str:
    """Enough of a space's id to tell it from others: what it is named after, and the start of its digest."""
    name, dash, digest = space.rpartition("-")
    return f"{name}{dash}{digest[:4]}" if len(digest) >= 8 else shorten(space, 24)
