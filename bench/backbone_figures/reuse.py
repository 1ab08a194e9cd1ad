"""What the shared keys and values of a prompt save, on a Qwen3 of 0.6B: texts of a task, documents of a rerank."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from harness.data import read_jsonl
from harness.report import Report
from harness.timing import interleaved, median_ratio
from model_families import ALL
from model_families.served import Served
from tokenizers import Tokenizer

from embedmux.server.models import find_model
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Tokens

PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
    "web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: "
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SETS = ("medquad", "obliqa", "tatqa_dev", "mbpp", "cacm")
NUM_QUERIES, NUM_DOCUMENTS, DOCUMENT_TOKENS = 64, 50, 120
ROUNDS = {"qwen3-embedding-0.6b": 5, "qwen3-reranker-0.6b": 3}


def reuse_figures(report: Report, data: Path | None, *, is_long: bool) -> None:
    """Adds prefix_reuse and rerank_reuse.

    The checkpoint's own tokenizer is a toy, so token ids, and with them the lengths of texts, come from the default
    model's.
    """
    more = 3 if is_long else 1
    reader = Reader()
    queries = real_queries(data) if data is not None else None
    ratio = None
    if queries is not None:
        prompt = reader.ids(PROMPT)
        tokens = [joined(prompt, reader.ids(query), [102]) for query in queries]
        output = OutputSpec(1024, Encoding.FLOAT32)
        ratio = measure("qwen3-embedding-0.6b", tokens, output, more, "texts with the default instruction")
    report.add("prefix_reuse", ratio, "x", ">= 1.8", "texts/s over no reuse, bf16")
    words = random.Random(5).choices(reader.words, k=NUM_DOCUMENTS * DOCUMENT_TOKENS)
    before, after = reader.ids(BEFORE.format(query="how do I reset my password on the website")), reader.ids(AFTER)
    documents = [words[start : start + DOCUMENT_TOKENS] for start in range(0, len(words), DOCUMENT_TOKENS)]
    pairs = [joined(before, document, after) for document in documents]
    score = OutputSpec(1024, Encoding.FLOAT32, (Output.SCORE,))
    ratio = measure("qwen3-reranker-0.6b", pairs, score, more, "documents of a rerank")
    report.add("rerank_reuse", ratio, "x", ">= 1.3", f"{NUM_DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens, bf16")


def measure(family: str, tokens: list[Tokens], output: OutputSpec, more: int, title: str) -> float:
    """Texts/s with shared prefixes over those without, the same token ids on one engine."""
    plain = [Tokens(text.ids, text.original) for text in tokens]
    adapters = [BASE_MODEL] * len(tokens)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / family
        next(found for found in ALL if found.name == family).build(folder, "full", 3)
        with Served(folder, dtype="bfloat16", max_batch=2048) as served:
            seconds = interleaved(
                {
                    "reuse": lambda: served.rows(tokens, adapters=adapters, output=output),
                    "plain": lambda: served.rows(plain, adapters=adapters, output=output),
                },
                rounds=more * ROUNDS[family],
                title=title,
            )
            assert served.rows(tokens, adapters=adapters, output=output) == served.rows(
                plain, adapters=adapters, output=output
            ), "reuse must not change a bit"
    return median_ratio(seconds["plain"], seconds["reuse"])


def joined(prefix: list[int], text: list[int], rest: list[int]) -> Tokens:
    """One text whose first tokens others share."""
    ids = [*prefix, *text, *rest]
    return Tokens(ids, len(ids), shared=len(prefix))


def real_queries(data: Path) -> list[str]:
    """Queries of 6 to 14 words, the same every time."""
    found = [row["text"] for name in SETS for row in read_jsonl(data / name / "queries.jsonl")]
    fitting = [text for text in found if 6 <= len(text.split()) <= 14]
    return random.Random(0).sample(fitting, NUM_QUERIES)


class Reader:
    """Real token lengths: the default model's vocabulary."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(find_model("minilm") / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.words = list(range(2000, 12000))

    def ids(self, text: str) -> list[int]:
        """Token ids without special ones."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found
