"""jina-reranker-v3's prompt to the byte, its markers, its limits of each text, and how documents fall into blocks."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from embedmux.server.contract import Contract
from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.records import Pooling, Truncate
from embedmux.server.text import listwise as module
from embedmux.server.text.listwise import Listing, ListReader
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
EXPECTED = """<|im_start|>system
You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to the \
query. If the query is a question, how relevant a passage is depends on how well it answers the question. If not, try \
to analyze the intent of the query and assess how well each passage satisfies the intent. If an instruction is \
provided, you should follow the instruction when determining the ranking.<|im_end|>
<|im_start|>user
I will provide you with 2 passages, each indicated by a numerical identifier. Rank the passages based on their \
relevance to query: why {tides}?
<passage id="0">
the moon<|embed_token|>
</passage>
<passage id="1">
 the sea <|embed_token|>
</passage>
<query>
why {tides}?<|rerank_token|>
</query><|im_end|>
<|im_start|>assistant
<think>

</think>

"""


def make_reader(folder: Path, max_tokens: int = 131_072) -> ListReader:
    contract = Contract("jina-reranker-v3", "decoder", max_tokens, Pooling.LAST, (8,))
    return ListReader(Tokenizer(folder, contract), max_tokens=max_tokens)


def read(
    folder: Path,
    query: str,
    documents: list[str],
    *,
    max_tokens: int = 131_072,
    truncate: Truncate = Truncate.NONE,
    instruction: str | None = None,
) -> Listing:
    return make_reader(folder, max_tokens).encode_now(query, documents, instruction=instruction, truncate=truncate)


@pytest.fixture
def folder(tokenizer_folder: Folder) -> Path:
    return tokenizer_folder("bytes")


@pytest.fixture
def library(folder: Path) -> Library:
    return Library.from_file(str(folder / "tokenizer.json"))


def test_the_prompt_is_the_model_s_own(folder: Path, library: Library) -> None:
    (block,) = read(folder, "why {tides}?", ["the moon", " the sea "]).blocks
    assert block.frame.rendered == EXPECTED
    assert block.tokens.ids == library.encode(EXPECTED).ids
    passage, query = library.token_to_id("<|embed_token|>"), library.token_to_id("<|rerank_token|>")
    assert [block.tokens.ids[at] for at in (*block.marks, block.query_mark)] == [passage, passage, query]
    assert block.marks[0] < block.marks[1] < block.query_mark
    assert block.documents == (0, 1)


def test_what_comes_before_the_query_is_shared(folder: Path, library: Library) -> None:
    (block,) = read(folder, "why", ["the moon"]).blocks
    assert block.tokens.ids[: block.tokens.shared] == library.encode(module.SYSTEM).ids


def test_an_instruction_has_its_place(folder: Path) -> None:
    (block,) = read(folder, "why", ["the moon"], instruction="prefer {short} ones").blocks
    wanted = 'to query: why\n<instruct>\nprefer {short} ones\n</instruct>\n<passage id="0">\nthe moon<|embed_token|>'
    assert wanted in block.frame.rendered


def test_markers_within_texts_are_taken_out(folder: Path) -> None:
    (block,) = read(folder, "why<|embed_token|>", ["the <|rerank_token|>moon<|embed_token|>"]).blocks
    assert len(block.marks) == 1
    assert "\nthe moon<|embed_token|>\n" in block.frame.rendered and "query: why\n" in block.frame.rendered


def test_markers_within_an_instruction_are_taken_out(folder: Path) -> None:
    (block,) = read(folder, "why", ["the moon"], instruction="find <|embed_token|>it<|rerank_token|>").blocks
    assert len(block.marks) == 1 and "<instruct>\nfind it\n</instruct>" in block.frame.rendered


@pytest.mark.parametrize("hidden", ["<|embed_<|embed_token|>token|>", "<|embed<|rerank_token|>_token|>"])
def test_a_marker_that_another_one_hid_is_refused(folder: Path, hidden: str) -> None:
    found = read(folder, "why", ["the moon", f"a {hidden}"])
    assert "the document holds a marker" in str(found.errors[1])
    assert [block.documents for block in found.blocks] == [(0,)]
    with pytest.raises(InvalidRequest, match="the query holds a marker"):
        read(folder, hidden, ["the moon"])
    with pytest.raises(InvalidRequest, match="the instruction holds a marker"):
        read(folder, "why", ["the moon"], instruction=hidden)


def test_an_instruction_that_leaves_no_room_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"the instruction has \d+ tokens, the model reads 300 of which"):
        read(folder, "why", ["the moon"] * 9, max_tokens=300, instruction="dragons " * 400)


async def test_a_long_instruction_is_read_off_the_event_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    reader = make_reader(folder)
    encode_now = reader.encode_now

    def noted(*arguments: object, **named: object) -> Listing:
        threads.append(threading.current_thread().name)
        return encode_now(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "encode_now", noted)
    await reader.encode("why", ["the moon"], instruction="dragons " * 400, truncate=Truncate.NONE)
    assert threads[0].startswith("embedmux-tokenizer")


@pytest.mark.parametrize("truncate", [Truncate.END, Truncate.START])
def test_each_text_is_cut_to_its_own_limit(
    folder: Path, library: Library, truncate: Truncate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUERY_TOKENS", 6)
    monkeypatch.setattr(module, "MAX_PASSAGE_TOKENS", 9)
    texts = ["the moon pulls the sea and the sea follows it", "seven quiet dragons box with wizards over the lazy dog"]
    found = read(folder, texts[0], [texts[1], "short"], truncate=truncate)
    for text, limit, passage in ((texts[0], 6, found.query), (texts[1], 9, found.passages[0])):
        ids = library.encode(text).ids
        assert len(ids) > limit
        kept = ids[:limit] if truncate is Truncate.END else ids[-limit:]
        assert passage.text == library.decode(kept, skip_special_tokens=False)
        assert (passage.num_tokens, passage.original) == (limit, len(ids))
    assert found.passages[1].num_tokens == found.passages[1].original
    assert all(
        f"\n{passage.text}<|embed_token|>" in found.blocks[0].frame.rendered for passage in found.passages.values()
    )
    assert found.blocks[0].frame.rendered.count(found.query.text) == 2


def test_an_over_long_query_is_raised_and_a_document_s_error_is_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUERY_TOKENS", 6)
    monkeypatch.setattr(module, "MAX_PASSAGE_TOKENS", 9)
    with pytest.raises(InvalidRequest, match="the query has 20 tokens, the model reads 6 of a query"):
        read(folder, "7" * 20, ["short"])
    found = read(folder, "why", ["short", "7" * 20, "also"])
    assert set(found.errors) == {1} and "the document has 20 tokens, the model reads 9 of a document" in str(
        found.errors[1]
    )
    assert [block.documents for block in found.blocks] == [(0, 2)]
    assert '<passage id="1">\nalso' in found.blocks[0].frame.rendered


def test_blocks_end_at_their_most_documents(folder: Path) -> None:
    found = read(folder, "why", ["sea"] * 260)
    assert [len(block.documents) for block in found.blocks] == [125, 125, 10]
    assert [at for block in found.blocks for at in block.documents] == list(range(260))
    assert all("I will provide you with 10 passages" in block.frame.rendered for block in found.blocks[2:])


def test_blocks_end_when_less_than_a_document_s_limit_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PASSAGE_TOKENS", 1500)
    lengths = [600, 500, 100, 700, 1500, 3, 1400, 200]
    found = read(folder, "777", ["7" * length for length in lengths], max_tokens=4000)
    # 4000 - 2 * 3 for the query, which stands in two places; 594 are left behind the fifth document.
    wanted, members, left = [], [], 4000 - 2 * 3
    for at, length in enumerate(lengths):
        members.append(at)
        left -= length
        if left <= 1500:
            wanted.append(tuple(members))
            members, left = [], 4000 - 2 * 3
    assert [block.documents for block in found.blocks] == [*wanted, tuple(members)] == [(0, 1, 2, 3, 4), (5, 6, 7)]


def test_a_block_that_its_frames_make_too_long_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PASSAGE_TOKENS", 50)
    found = read(folder, "why", ["sea"] * 60, max_tokens=1000)
    assert not found.errors
    assert [at for block in found.blocks for at in block.documents] == list(range(60))
    assert len(found.blocks) > 1 and all(len(block.tokens.ids) <= 1000 for block in found.blocks)


def test_a_document_that_cannot_fit_alone_is_its_own_error(folder: Path) -> None:
    found = read(folder, "why", ["7" * 2000, "sea"], max_tokens=1500)
    assert set(found.errors) == {0} and "the model reads 1500" in str(found.errors[0])
    assert set(found.passages) == {1}
    assert [block.documents for block in found.blocks] == [(1,)]


def test_a_tokenizer_without_the_markers_is_refused(tokenizer_folder: Folder) -> None:
    with pytest.raises(ModelRejected, match=r"has no token '<\|embed_token\|>'"):
        make_reader(tokenizer_folder("bert"))
