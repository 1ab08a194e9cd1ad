"""A tiny random BERT and tiny datasets of every kind, made on the spot."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

THEMES = {"animals": "cat dog bird fish", "sky": "sun moon star rain", "colours": "red blue green black"}
VERBS = ["runs", "sleeps", "eats", "jumps", "swims", "flies"]
WORDS = [word for theme in THEMES.values() for word in theme.split()] + VERBS + [":", "query", "document"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: BERT with two layers of 32, mean pooling, normalised; random weights."""
    plain, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("tiny-model")
    (plain / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    BertTokenizerFast(vocab=str(plain / "vocab.txt"), model_max_length=32).save_pretrained(plain)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(32), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one dataset of each kind; corpus and clustering files are gzipped."""
    root, choose = tmp_path_factory.mktemp("data"), random.Random(0)

    def sentence(theme: str) -> str:
        return " ".join(choose.choice(THEMES[theme].split()) for _ in range(3)) + f" {choose.choice(VERBS)}"

    texts = [(sentence(theme), theme) for _ in range(40) for theme in THEMES]
    labelled = [{"text": text, "label": label} for text, label in texts]

    write(root / "shops" / "dataset.json", [{"name": "shops", "kind": "classification", "licence": "CC0"}])
    write(root / "shops" / "train.jsonl", labelled[:90])
    write(root / "shops" / "test.jsonl", labelled[90:])

    description = {"name": "themes", "kind": "clustering", "train_labels": [], "test_labels": ["a", "b"]}
    description["train_labels"] = ["animals", "sky", "colours", "c"]
    write(root / "themes" / "dataset.json", [description])
    extra = [{"text": f"{word} {other}", "label": word[0]} for word in ("a", "b", "c") for other in WORDS]
    write(root / "themes" / "test.jsonl.gz", labelled + extra)

    write(root / "likes" / "dataset.json", [{"name": "likes", "kind": "similarity"}])
    pairs = [
        {"text1": one, "text2": two, "score": float(len(set(one.split()) & set(two.split())))}
        for (one, _), (two, _) in zip(texts, texts[3:], strict=False)
    ]
    write(root / "likes" / "pairs.train.jsonl", pairs[:60])
    write(root / "likes" / "pairs.dev.jsonl", pairs[60:80])
    write(root / "likes" / "pairs.test.jsonl", pairs[80:])

    write(root / "books" / "dataset.json", [{"name": "books", "kind": "retrieval", "citation": "Nobody, 2020."}])
    write(
        root / "books" / "corpus.jsonl.gz", [{"_id": f"d{n}", "title": t, "text": s} for n, (s, t) in enumerate(texts)]
    )
    write(root / "books" / "queries.jsonl", [{"_id": f"q{n}", "text": s} for n, (s, _) in enumerate(texts[:60])])
    for part, numbers in (("train", range(40)), ("test", range(40, 60))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        path = root / "books" / "qrels" / f"{part}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return root


def write(path: Path, rows: Iterable[object]) -> None:
    """One JSON value a line, gzipped if the name ends so."""
    path.parent.mkdir(exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
