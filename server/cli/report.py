"""What a person sees of ``embedmux embed``: a bar while it runs, the first rows, a line at the end."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from embedmux.client.texts import EmbedOptions
from embedmux.server.cli import console
from embedmux.server.cli.bulk import Answered

MAX_SHOWN = 20  # a file of texts without --output is a look, not a job


@dataclass
class Tally:
    """What was done so far."""

    num_texts: int = 0
    num_failed: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, answered: Answered) -> None:
        """Counts ``answered``."""
        rows = answered.rows
        self.num_texts += len(rows.ids)
        self.num_failed += len(answered.errors)
        self.num_tokens += sum(rows.num_tokens)
        pairs = zip(rows.num_tokens, rows.num_tokens_original, strict=True)
        self.num_truncated += sum(tokens < original for tokens, original in pairs)

    def rate(self) -> str:
        """Texts and tokens in a second, so far."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{self.num_texts / seconds:,.0f} texts/s, {self.num_tokens / seconds:,.0f} tokens/s"

    def show(self, output: Path | None) -> None:
        """The summary, on stderr."""
        seconds = time.monotonic() - self.started
        cut = f", {self.num_truncated:,} truncated" if self.num_truncated else ""
        failed = f", {self.num_failed:,} failed" if self.num_failed else ""
        text = f"{self.num_texts:,} texts, {self.num_tokens:,} tokens{cut}{failed} in {seconds:.1f} s ({self.rate()})"
        if output is not None:
            text += f" -> {output}"
            if self.num_failed:
                text += f"; the failed ones are listed in {output.with_suffix('.errors.jsonl')}"
        console.messages().print(text, soft_wrap=True)


class Shown:
    """The first rows, for a person."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._table = Table("id", "text", "task", "role", "tokens", "space", "vector", header_style="bold")
        self._table.columns[4].justify = "right"

    def add(self, answered: Answered) -> None:
        """Shows ``answered`` as far as there is room."""
        rows = answered.rows
        for index, line in enumerate(answered.lines[: max(0, MAX_SHOWN - self._table.row_count)]):
            text, space = line.text, rows.spaces[index]
            if index in answered.errors:
                vector = f"failed: {answered.errors[index]}"
            else:
                vector = ", ".join(f"{value:.3g}" for value in rows.vectors[index, :4].astype(np.float64)) + ", …"
            cut = f" of {rows.num_tokens_original[index]}"
            tokens = (
                f"{rows.num_tokens[index]}{cut if rows.num_tokens[index] < rows.num_tokens_original[index] else ''}"
            )
            self._table.add_row(
                line.id,
                console.shorten(text.text, 40) if text else "",
                (text and text.task) or self._options.get("task") or "",
                (text and text.role) or self._options.get("role") or "",
                tokens,
                console.short_space(space.id) if space else "",
                vector,
                style="red" if index in answered.errors else None,
            )

    def show(self, num_texts: int) -> None:
        """Prints the table, and how many rows it leaves out."""
        console.output().print(self._table)
        if num_texts > self._table.row_count:
            more = num_texts - self._table.row_count
            console.messages().print(f"{more:,} more are not shown; --output FILE keeps the vectors")


def progress_bar() -> Progress:
    """Texts done, their rate and the time left, on stderr; nothing when nobody looks."""
    target = console.messages()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=target,
        disable=not target.is_terminal,
        transient=True,
    )
