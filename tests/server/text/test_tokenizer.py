"""The tokenizer against transformers', and the truth about length."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.models import find_model
from embedmux.server.records import Tokens, Truncate
from embedmux.server.text.tokenizer import Tokenizer

TEXTS = ["hello world", "Ünïcode — naïve café 東京", "a " * 400, "x", "tabs\tand\nlines", "emoji 🙂 end"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_model("minilm")


@pytest.mark.parametrize(("truncate", "side"), [(Truncate.END, "right"), (Truncate.START, "left")])
def test_ids_equal_transformers(folder: Path, truncate: Truncate, side: str) -> None:
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    found = Tokenizer(folder, max_tokens=64).encode_now(TEXTS, truncate)
    for text, tokens in zip(TEXTS, found, strict=True):
        assert isinstance(tokens, Tokens)
        assert tokens.ids == theirs(text, truncation=True, max_length=64)["input_ids"]
        assert tokens.original == len(theirs(text)["input_ids"])
        assert tokens.is_truncated == (tokens.original > 64)


def test_a_long_text_is_refused_and_its_neighbours_are_not(folder: Path) -> None:
    found = Tokenizer(folder, max_tokens=16).encode_now(["short", "word " * 50, "also short"], Truncate.NONE)
    assert isinstance(found[0], Tokens) and isinstance(found[2], Tokens)
    assert isinstance(found[1], InvalidRequest)
    assert "has 52 tokens, the model reads 16" in str(found[1])


async def test_long_work_leaves_the_event_loop(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=64)
    texts = ["some words " * 10] * 20
    assert await tokenizer.encode(texts, Truncate.END) == tokenizer.encode_now(texts, Truncate.END)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path, max_tokens=8)


def test_large_requests_are_read_in_pieces_of_bounded_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(folder, max_tokens=16)
    whole = tokenizer.encode_now(TEXTS * 3, Truncate.END)
    monkeypatch.setattr("embedmux.server.text.tokenizer.CHUNK_CHARACTERS", 40)
    assert tokenizer.encode_now(TEXTS * 3, Truncate.END) == whole
