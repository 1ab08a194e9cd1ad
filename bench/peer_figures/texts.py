"""Real texts of two kinds: short ones of 5 to 14 words, long ones of about 112 tokens."""

import random
from pathlib import Path

from harness.data import read_jsonl
from tokenizers import Tokenizer

from embedmux.server.models import find_model

SHORT_SETS = ("banking77/test.jsonl", "hwu64/train.jsonl", "medquad/queries.jsonl", "stackoverflow_titles/test.jsonl")


def library_tokenizer() -> Tokenizer:
    """MiniLM's, to count tokens with."""
    return Tokenizer.from_file(str(find_model("minilm") / "tokenizer.json"))


def short_texts(data: Path, count: int) -> list[str]:
    """Questions, requests and titles."""
    found = [row["text"].strip() for name in SHORT_SETS for row in read_jsonl(data / name)]
    return random.Random(1).sample([text for text in found if 5 <= len(text.split()) <= 14], count)


def long_texts(data: Path, count: int, tokenizer: Tokenizer) -> list[str]:
    """Excerpts of documents, their lengths normal around 112 tokens."""
    chosen = random.Random(2)
    documents = [row["text"].split() for row in read_jsonl(data / "medquad" / "corpus.jsonl")]
    documents = [words for words in documents if len(words) >= 200]
    found = []
    for _ in range(count):
        words = chosen.choice(documents)
        start, wanted = chosen.randrange(len(words) - 110), chosen.gauss(112, 12)
        ids = tokenizer.encode(" ".join(words[start : start + 110])).ids
        found.append(" ".join(words[start : start + max(20, int(110 * wanted / len(ids)))]))
    return found
