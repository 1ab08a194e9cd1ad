"""Requests as they travel, of real texts that are all distinct, tasks in turn."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from harness.data import read_jsonl
from peer_figures.texts import SHORT_SETS, library_tokenizer, long_texts

from embedmux.client.texts import Text, embed_request

INSTRUCTIONS = (("retrieval", "query"), ("text-matching", None), ("classification", None), ("clustering", None))


class Texts:
    """Distinct texts without end: real ones, with a number so that none comes twice."""

    def __init__(self, data: Path) -> None:
        found = [row["text"].strip() for name in SHORT_SETS for row in read_jsonl(data / name)]
        self._short = [text for text in found if 5 <= len(text.split()) <= 14]
        random.Random(1).shuffle(self._short)
        self._long = long_texts(data, 1000, library_tokenizer())
        self._numbers = itertools.count()

    def short(self, count: int) -> list[str]:
        """Questions, requests and titles of 5 to 14 words, and the number."""
        return [f"{text} {next(self._numbers)}" for text in itertools.islice(itertools.cycle(self._short), count)]

    def long(self, count: int) -> list[str]:
        """Excerpts of about 112 tokens."""
        return [f"{next(self._numbers)} {text}" for text in itertools.islice(itertools.cycle(self._long), count)]


def tasks() -> Iterator[tuple[str, str | None]]:
    """The four tasks in turn, for ever."""
    return itertools.cycle(INSTRUCTIONS)


def bodies(texts: list[str], texts_a_request: int) -> list[bytes]:
    """Serialised EmbedRequests; the texts of one are of all tasks."""
    mixed = [Text(text, task=task, role=role) for text, (task, role) in zip(texts, tasks(), strict=False)]
    groups = (mixed[start : start + texts_a_request] for start in range(0, len(mixed), texts_a_request))
    return [embed_request(group, {}).SerializeToString() for group in groups]
