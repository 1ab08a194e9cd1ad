"""Real texts out of a folder of datasets in BEIR layout and its relatives."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path


def read_jsonl(path: Path) -> Iterator[dict[str, str]]:
    """Objects of ``path`` or ``path``.gz."""
    packed = path.with_name(path.name + ".gz")
    with gzip.open(packed, "rt", encoding="utf-8") if packed.exists() else path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def real_texts(data: Path, count: int, *, seed: int) -> list[str]:
    """``count`` texts from questions, documents, titles and intents alike, the same for the same seed."""
    pools = [
        [row["text"] for row in read_jsonl(data / "banking77" / "test.jsonl")],
        [row["text"] for row in read_jsonl(data / "medquad" / "queries.jsonl")],
        [row["text"] for row in read_jsonl(data / "stackoverflow_titles" / "test.jsonl")],
        [row["text"] for row in read_jsonl(data / "medquad" / "corpus.jsonl")],
        [row["text"] for row in read_jsonl(data / "cacm" / "corpus.jsonl")],
    ]
    chosen = random.Random(seed)
    return [text for text in (chosen.choice(chosen.choice(pools)).strip() for _ in range(2 * count)) if text][:count]


def texts_by_length(data: Path, tokenizer: object, lengths: range, *, seed: int) -> list[str]:
    """Real texts whose token counts spread over ``lengths``: words of documents, cut where the count is met."""
    chosen = random.Random(seed)
    documents = [row["text"] for row in read_jsonl(data / "medquad" / "corpus.jsonl")]
    long = [text for text in documents if len(text.split()) >= lengths.stop]
    found = []
    for length in lengths:
        words = chosen.choice(long).split()
        while len(words) > 1 and len(tokenizer(" ".join(words))["input_ids"]) > length:  # type: ignore[operator]
            ids = len(tokenizer(" ".join(words))["input_ids"])  # type: ignore[operator]
            words = words[: max(1, min(len(words) - 1, len(words) * length // ids))]
        found.append(" ".join(words))
    return found
