"""A query with a document, against transformers' pairs; only what may be cut is cut."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from embedmux.server.contract import Contract
from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.records import Pooling, Tokens, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.pairs import PairReader
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
KINDS = ["bert", "xlm-r", "bytes", "bytes-eos", "bytes-bos"]
QUERY = "how do tides work"
DOCUMENTS = ["the moon pulls the sea", "x", "seven quiet dragons, 東京 and 🙂 " * 8]


def reader(folder: Path, max_tokens: int = 64, share: float = 0.75) -> PairReader:
    contract = Contract("test", "bert", max_tokens, Pooling.CLS, (8,))
    return PairReader(Tokenizer(folder, contract), max_tokens=max_tokens, max_query_share=share)


def theirs(folder: Path, side: str = "right") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), truncation_side=side)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("truncate", "side"), [(Truncate.END, "right"), (Truncate.START, "left")])
def test_pairs_equal_transformers(tokenizer_folder: Folder, kind: str, truncate: Truncate, side: str) -> None:
    folder = tokenizer_folder(kind)
    library = theirs(folder, side)
    for document, tokens in zip(DOCUMENTS, reader(folder).encode_now(QUERY, DOCUMENTS, truncate), strict=True):
        wanted = library(QUERY, document, truncation="only_second", max_length=64, return_token_type_ids=True)
        assert isinstance(tokens, Tokens)
        assert tokens.ids == wanted["input_ids"]
        assert tokens.original == len(library(QUERY, document)["input_ids"])
        types = [int(bool(tokens.second) and at >= tokens.second) for at in range(len(tokens.ids))]
        assert types == wanted["token_type_ids"]


def test_a_token_without_a_row_in_the_model_is_refused_alone(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes")
    found = Tokenizer(folder, Contract("test", "bert", 64, Pooling.CLS, (8,)))
    stranger = found.library.token_to_id("z")
    known = [token for token in map(found.library.token_to_id, "abcdefgh") if token is not None and token < stranger]
    assert known
    small = Tokenizer(folder, Contract("test", "bert", 64, Pooling.CLS, (8,), vocabulary=stranger))
    good, bad = small.encode_now([Frame("", "a"), Frame("", "z")], Truncate.NONE)
    assert isinstance(good, Tokens) and isinstance(bad, InvalidRequest)
    assert f"with id {stranger}, the model's table ends at {stranger - 1}" in str(bad)
    pairs = PairReader(small, max_tokens=64, max_query_share=0.75).encode_now("a", ["b", "z"], Truncate.NONE)
    assert [isinstance(pair, Tokens) for pair in pairs] == [True, False]


def test_types_begin_with_the_document_where_the_tokenizer_has_them(tokenizer_folder: Folder) -> None:
    (pair,) = reader(tokenizer_folder("bert")).encode_now(QUERY, ["x"], Truncate.NONE)
    assert isinstance(pair, Tokens) and pair.ids[pair.second - 1] == 3 and pair.second == len(pair.ids) - 2
    (pair,) = reader(tokenizer_folder("xlm-r")).encode_now(QUERY, ["x"], Truncate.NONE)
    assert isinstance(pair, Tokens) and pair.second == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_query_keeps_its_share_and_the_document_the_rest(tokenizer_folder: Folder, kind: str) -> None:
    folder = tokenizer_folder(kind)
    library = theirs(folder)
    plain = [library(text, add_special_tokens=False)["input_ids"] for text in ("moon " * 40, "sea " * 40)]
    (cut,) = reader(folder, 32).encode_now("moon " * 40, ["sea " * 40], Truncate.END)
    assert isinstance(cut, Tokens)
    assert len(cut.ids) == 32
    around = len(library("a", "a")["input_ids"]) - 2 * len(library("a", add_special_tokens=False)["input_ids"])
    start = next(at for at in range(32) if cut.ids[at : at + 24] == plain[0][:24])
    room = 32 - 24 - around
    assert cut.ids[start + 24 :].count(plain[1][0]) >= 1
    assert sum(1 for at in range(start + 24, 33 - room) if cut.ids[at : at + room] == plain[1][:room]) == 1
    assert cut.original == len(plain[0]) + len(plain[1]) + around


def test_a_long_query_is_an_error_of_the_request(tokenizer_folder: Folder) -> None:
    with pytest.raises(InvalidRequest, match="the query has 40 tokens, the model reads 24 beside a document; shorten"):
        reader(tokenizer_folder("bert"), 32).encode_now("moon " * 40, ["x"], Truncate.NONE)


def test_a_long_document_is_its_own_error(tokenizer_folder: Folder) -> None:
    found = reader(tokenizer_folder("bert"), 32).encode_now("moon", ["sea", "sea " * 40, "sea"], Truncate.NONE)
    assert [isinstance(each, Tokens) for each in found] == [True, False, True]
    assert "has 44 tokens together with the query, the model reads 32" in str(found[1])


def test_a_full_share_leaves_a_document_one_token(tokenizer_folder: Folder) -> None:
    (cut,) = reader(tokenizer_folder("bert"), 32, share=1.0).encode_now("moon " * 40, ["sea moon"], Truncate.END)
    assert isinstance(cut, Tokens) and len(cut.ids) == 32
    assert cut.second == 30


def test_the_rendering_writes_special_tokens_out(tokenizer_folder: Folder) -> None:
    assert reader(tokenizer_folder("xlm-r")).render("q {x}", " d ") == "<s>q {x}</s></s> d </s>"
    assert reader(tokenizer_folder("bert")).render("q", "d") == "[CLS]q[SEP]d[SEP]"


async def test_long_work_leaves_the_event_loop(tokenizer_folder: Folder) -> None:
    pairs = reader(tokenizer_folder("bert"))
    found = await pairs.encode(QUERY, DOCUMENTS * 20, Truncate.END)
    assert found == pairs.encode_now(QUERY, DOCUMENTS * 20, Truncate.END)


def test_token_types_that_no_boundary_describes_are_refused(tokenizer_folder: Folder, tmp_path: Path) -> None:
    library = Library.from_file(str(tokenizer_folder("bert") / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:1 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelRejected, match="other types than zeros, then ones"):
        reader(tmp_path)
