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
from embedmux.server.cli.rows import Layout

TITLES = {"dense": "vector", "sparse": "weights by token id", "tokens": "token vectors"}
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

    def __init__(self, options: EmbedOptions, layout: Layout) -> None:
        self._options = options
        self._layout = layout
        self._table = Table("id", "text", "task", "role", "tokens", "space", header_style="bold")
        self._table.columns[4].justify = "right"
        for output, title in TITLES.items():
            if output in layout.outputs:
                self._table.add_column(title)

    def add(self, answered: Answered) -> None:
        """Shows ``answered`` as far as there is room."""
        rows = answered.rows
        for index, line in enumerate(answered.lines[: max(0, MAX_SHOWN - self._table.row_count)]):
            text, space = line.text, rows.spaces[index]
            cut = f" of {rows.num_tokens_original[index]}"
            tokens = (
                f"{rows.num_tokens[index]}{cut if rows.num_tokens[index] < rows.num_tokens_original[index] else ''}"
            )
            read = repr(answered.rendered[index]) if answered.rendered and index not in answered.errors else None
            self._table.add_row(
                line.id,
                read or (console.shorten(text.text, 40) if text else ""),
                (text and text.task) or self._options.get("task") or "",
                (text and text.role) or self._options.get("role") or "",
                tokens,
                console.short_space(space.id) if space else "",
                *self._outputs(answered, index),
                style="red" if index in answered.errors else None,
            )

    def _outputs(self, answered: Answered, index: int) -> list[str]:
        """What one text became: the start of each output, or why there is none."""
        if index in answered.errors:
            return [f"failed: {answered.errors[index]}"]
        rows, found = answered.rows, []
        if "dense" in self._layout.outputs:
            found.append(", ".join(f"{value:.3g}" for value in rows.vectors[index, :4].astype(np.float64)) + ", …")
        if rows.sparse is not None:
            found.append(shown_weights(rows.sparse.weights_of(index)))
        if rows.tokens is not None:
            found.append(f"{len(rows.tokens.rows_of(index))} × {rows.tokens.dimensions}")
        return found

    def show(self, num_texts: int) -> None:
        """Prints the table, and how many rows it leaves out."""
        console.output().print(self._table)
        if num_texts > self._table.row_count:
            more = num_texts - self._table.row_count
            console.messages().print(f"{more:,} more are not shown; --output FILE keeps the vectors")


def shown_weights(weights: dict[int, float]) -> str:
    """The heaviest token ids of a text, and how many there are."""
    heaviest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:3]
    shown = ", ".join(f"{id}: {weight:.3g}" for id, weight in heaviest)
    return f"{shown}, … ({len(weights)} ids)" if len(weights) > len(heaviest) else shown


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
