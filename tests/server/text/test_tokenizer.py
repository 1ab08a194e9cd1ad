"""The tokenizer against transformers', what a cut leaves alone, and the truth about length."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from embedmux.server.contract import Contract
from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.models import find_model
from embedmux.server.records import Pooling, Tokens, Truncate
from embedmux.server.text import tokenizer as module
from embedmux.server.text.frames import Frame, fill
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
TEXTS = ["hello world", "Ünïcode — naïve café 東京", "a " * 400, "x", "tabs\tand\nlines", "emoji 🙂 end"]
WORDS = ["the", "moon", "pulls", "sea", "and", "seven", "quiet", "dragons", "follow", "東京", "naïve", "🙂"]
ZEMBED = ("<|im_start|>system\nquery<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n")


def contract(max_tokens: int = 64, **more: object) -> Contract:
    return Contract("test", "bert", max_tokens, Pooling.MEAN, (8,), **more)  # type: ignore[arg-type]


def plain(texts: list[str]) -> list[Frame]:
    return [Frame("", text) for text in texts]


def read(folder: Path, frame: Frame, truncate: Truncate = Truncate.NONE, **more: object) -> Tokens | InvalidRequest:
    tokenizer = Tokenizer(folder, contract(**more))  # type: ignore[arg-type]
    (found,) = tokenizer.encode_now([frame], truncate)
    tokenizer.close()
    return found


def ids_of(folder: Path, text: str, *, special: bool = False) -> list[int]:
    ids: list[int] = Library.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=special).ids
    return ids


@pytest.fixture(scope="module")
def minilm() -> Path:
    return find_model("minilm")


@pytest.mark.parametrize(("truncate", "side"), [(Truncate.END, "right"), (Truncate.START, "left")])
def test_ids_equal_transformers(minilm: Path, truncate: Truncate, side: str) -> None:
    theirs = AutoTokenizer.from_pretrained(minilm, truncation_side=side)
    found = Tokenizer(minilm, contract()).encode_now(plain(TEXTS), truncate)
    for text, tokens in zip(TEXTS, found, strict=True):
        assert isinstance(tokens, Tokens)
        assert tokens.ids == theirs(text, truncation=True, max_length=64)["input_ids"]
        assert tokens.original == len(theirs(text)["input_ids"])
        assert tokens.is_truncated == (tokens.original > 64)


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "bytes", "bytes-eos", "bytes-bos"])
@pytest.mark.parametrize(("truncate", "side"), [(Truncate.END, "right"), (Truncate.START, "left")])
def test_a_cut_without_prompt_is_transformers_cut(
    tokenizer_folder: Folder, kind: str, truncate: Truncate, side: str
) -> None:
    folder = tokenizer_folder(kind)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), truncation_side=side)
    for text in (" ".join(WORDS * 3), "  spaces   all\tover \n " * 20, "🙂東é" * 30):
        tokens = read(folder, Frame("", text), truncate, max_tokens=17)
        assert isinstance(tokens, Tokens)
        assert tokens.ids == theirs(text, truncation=True, max_length=17)["input_ids"]


def test_a_long_text_is_refused_and_its_neighbours_are_not(minilm: Path) -> None:
    frames = plain(["short", "word " * 50, "also short"])
    found = Tokenizer(minilm, contract(16)).encode_now(frames, Truncate.NONE)
    assert isinstance(found[0], Tokens) and isinstance(found[2], Tokens)
    assert isinstance(found[1], InvalidRequest)
    assert "has 52 tokens, the model reads 16" in str(found[1])


def test_a_text_s_own_limit_holds_below_the_model_s(minilm: Path) -> None:
    found = read(minilm, Frame("", "word " * 50, max_tokens=10), Truncate.END)
    assert isinstance(found, Tokens) and (len(found.ids), found.original) == (10, 52)
    found = read(minilm, Frame("", "word " * 50, max_tokens=1000), max_tokens=20)
    assert isinstance(found, InvalidRequest) and "the model reads 20" in str(found)


@pytest.mark.parametrize("truncate", [Truncate.END, Truncate.START])
def test_prompt_and_suffix_stay_when_a_text_is_cut(tokenizer_folder: Folder, truncate: Truncate) -> None:
    folder = tokenizer_folder("bytes")
    prefix, suffix = ZEMBED
    text = " ".join(WORDS * 4)
    # Special tokens stand at both borders, so the three parts can be tokenised on their own.
    parts = [ids_of(folder, part) for part in (prefix, text, suffix)]
    for limit in (len(parts[0]) + len(parts[2]) + 1, 40, 41):
        found = read(folder, Frame(prefix, text, suffix), truncate, max_tokens=limit, suffix=suffix)
        assert isinstance(found, Tokens)
        room = limit - len(parts[0]) - len(parts[2])
        kept = parts[1][:room] if truncate is Truncate.END else parts[1][-room:]
        assert found.ids == parts[0] + kept + parts[2]
        assert found.original == sum(map(len, parts))


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "bytes", "bytes-eos", "bytes-bos"])
def test_a_cut_leaves_every_other_token_where_it_was(tokenizer_folder: Folder, kind: str) -> None:
    folder = tokenizer_folder(kind)
    library = Library.from_file(str(folder / "tokenizer.json"))
    random_ = random.Random(7)
    tokenizer = Tokenizer(folder, contract(max_tokens=1000))
    for _ in range(60):
        text = " ".join(random_.choices(WORDS, k=random_.randint(12, 40)))
        prefix = random_.choice(["query: ", "Instruct: find\nQuery:", "", "¿東京? "])
        suffix = random_.choice(["", " the end", "\n"])
        whole = library.encode(prefix + text + suffix)
        limit = random_.randint(len(whole.ids) * 2 // 3 + 4, len(whole.ids) - 1)
        for truncate in (Truncate.END, Truncate.START):
            (found,) = tokenizer.encode_now([Frame(prefix, text, suffix, limit)], truncate)
            assert isinstance(found, Tokens), found
            assert len(found.ids) == limit
            assert any(is_cut_of_text(found.ids, whole, first, prefix, text) for first in range(limit + 1))


def is_cut_of_text(ids: list[int], whole: Encoded, first: int, prefix: str, text: str) -> bool:
    """Whether ``ids`` are the whole but for one run from ``first``, whose characters are the text's.

    A space between the prompt's end and the first word counts as the word's.
    """
    num_gone = len(whole.ids) - len(ids)
    gone = whole.offsets[first : first + num_gone]
    return (
        ids == whole.ids[:first] + whole.ids[first + num_gone :]
        and all(start >= len(prefix.rstrip()) for start, _ in gone)
        and all(end <= len(prefix) + len(text) for _, end in gone)
    )


def test_white_space_of_the_prompt_goes_with_the_first_word(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes")
    text = " ".join(WORDS[:5] * 5)
    found = read(folder, Frame("query: ", text), Truncate.START, max_tokens=12)
    joint = ids_of(folder, "query: " + text)
    prompt = ids_of(folder, "query:")
    assert isinstance(found, Tokens)
    assert found.ids == prompt + joint[-(12 - len(prompt)) :]


def test_begin_and_end_are_forced_once_and_kept_by_a_cut(tokenizer_folder: Folder) -> None:
    """As e5-mistral: the tokenizer puts <s> by itself and forgets </s>."""
    folder = tokenizer_folder("bytes-bos")
    bos, eos = ids_of(folder, "<s>")[0], ids_of(folder, "</s>")[0]
    text = " ".join(WORDS * 3)
    for kind, truncate in (("bytes-bos", Truncate.END), ("bytes", Truncate.START)):
        frame = Frame("Instruct: x\nQuery: ", text)
        whole = read(tokenizer_folder(kind), frame, max_tokens=999, beginning=bos, ending=eos)
        assert isinstance(whole, Tokens)
        assert whole.ids == [bos, *ids_of(folder, frame.rendered), eos]
        cut = read(tokenizer_folder(kind), frame, truncate, max_tokens=30, beginning=bos, ending=eos)
        assert isinstance(cut, Tokens)
        assert (len(cut.ids), cut.ids[0], cut.ids[-1], cut.ids.count(bos)) == (30, bos, eos, 1)
        assert cut.original == len(whole.ids)


def test_an_end_that_the_tokenizer_puts_is_not_doubled(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes-eos")
    eos = ids_of(folder, "<|endoftext|>")[0]
    for truncate in Truncate:
        found = read(folder, Frame("q:", "one two"), truncate, ending=eos)
        assert isinstance(found, Tokens) and found.ids == [*ids_of(folder, "q:one two"), eos]
    # A text that ends with the token's own words still gets one, as transformers gives it.
    found = read(folder, Frame("", "one<|endoftext|>"), ending=eos)
    assert isinstance(found, Tokens) and found.ids[-2:] == [eos, eos]


def test_a_suffix_that_is_the_end_is_not_doubled(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes")
    newline = ids_of(folder, "\n")[0]
    found = read(folder, Frame(*ZEMBED[:1], "text", ZEMBED[1]), suffix=ZEMBED[1], ending=newline)
    assert isinstance(found, Tokens) and found.ids[-2:] == [ids_of(folder, "<|im_end|>")[0], newline]


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "bytes", "bytes-eos", "bytes-bos"])
@pytest.mark.parametrize("prefix", ["query: ", "Instruct: given a web search query\nQuery:", ZEMBED[0], "q"])
def test_shared_tokens_are_the_prompt_s(tokenizer_folder: Folder, kind: str, prefix: str) -> None:
    folder = tokenizer_folder(kind)
    tokenizer = Tokenizer(folder, contract(200))
    tail = {"bert": 1, "xlm-r": 1, "bytes-eos": 1}.get(kind, 0)
    alone = ids_of(folder, prefix, special=True)
    alone = alone[: len(alone) - tail]
    frames = [Frame(prefix, text) for text in ("what is this", "東京", " spaced", "q", "dog " * 20)]
    for frame, tokens in zip(frames, tokenizer.encode_now(frames, Truncate.NONE), strict=True):
        assert isinstance(tokens, Tokens)
        assert tokens.ids == ids_of(folder, frame.rendered, special=True)
        common = [a == b for a, b in zip(tokens.ids, alone, strict=False)]
        assert tokens.shared == (common.index(False) if False in common else len(common))
        assert 0 < tokens.shared < len(tokens.ids)


def test_nothing_is_shared_without_a_prompt_and_one_token_is_always_left(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes")
    found = read(folder, Frame("", "some text"))
    assert isinstance(found, Tokens) and found.shared == 0
    found = read(folder, Frame("query", ""))
    assert isinstance(found, Tokens) and found.shared == len(found.ids) - 1


def test_shared_holds_after_a_cut_at_the_start(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bytes")
    prompt = ids_of(folder, ZEMBED[0])
    found = read(folder, Frame(ZEMBED[0], "word " * 50), Truncate.START, max_tokens=40)
    assert isinstance(found, Tokens) and found.shared == len(prompt) and found.ids[: found.shared] == prompt


def test_a_prompt_that_leaves_no_room_is_named(tokenizer_folder: Folder) -> None:
    found = read(tokenizer_folder("bert"), Frame("the moon pulls the sea " * 4, "text"), Truncate.END, max_tokens=8)
    assert isinstance(found, InvalidRequest)
    assert "the model reads 8" in str(found) and "use a shorter prompt" in str(found)


def test_a_marker_stands_behind_the_first_token_and_counts(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder("bert")
    whole = read(folder, Frame("", "the moon pulls the sea", marker=5))
    assert isinstance(whole, Tokens)
    ids = ids_of(folder, "the moon pulls the sea", special=True)
    assert (whole.ids, whole.original) == ([ids[0], 5, *ids[1:]], len(ids) + 1)
    cut = read(folder, Frame("", "the moon pulls the sea", max_tokens=6, marker=5), Truncate.END)
    assert isinstance(cut, Tokens)
    assert (cut.ids, cut.original) == ([ids[0], 5, *ids[1:4], ids[-1]], len(ids) + 1)


def test_a_text_without_tokens_is_an_error(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    library.normalizer = normalizers.Replace("x", "")
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    found = read(tmp_path, Frame("", "xxx"))
    assert isinstance(found, InvalidRequest) and "has no tokens" in str(found)


async def test_long_work_leaves_the_event_loop(minilm: Path) -> None:
    tokenizer = Tokenizer(minilm, contract())
    frames = plain(["some words " * 10] * 20)
    assert await tokenizer.encode(frames, Truncate.END) == tokenizer.encode_now(frames, Truncate.END)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
async def test_a_large_request_is_read_in_parts_side_by_side(
    minilm: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 100)
    tokenizer = Tokenizer(minilm, contract(), num_threads=num_threads)
    frames = plain(["word " * (1 + 37 * index % 90) for index in range(41)] + [""])
    sizes = [frame.num_characters for frame in frames]
    parts = await tokenizer.spread(sizes, lambda part, _: [len(frames[part])])
    assert len(parts) == num_threads and sum(parts) == len(frames) and min(parts) > 0
    assert await tokenizer.encode(frames, Truncate.END) == tokenizer.encode_now(frames, Truncate.END)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path, contract())


def test_a_broken_tokenizer_is_named(tokenizer_folder: Folder, tmp_path: Path) -> None:
    whole = (tokenizer_folder("bert") / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelRejected, match=r"cannot read tokenizer\.json"):
        Tokenizer(tmp_path, contract())


def test_large_requests_are_read_in_pieces_of_bounded_size(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(minilm, contract(16))
    whole = tokenizer.encode_now(plain(TEXTS * 3), Truncate.END)
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 40)
    assert tokenizer.encode_now(plain(TEXTS * 3), Truncate.END) == whole


def test_remembered_prompts_are_bounded(tokenizer_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_PREFIXES", 3)
    tokenizer = Tokenizer(tokenizer_folder("bytes"), contract(4000))
    frames = [Frame(f"prompt {number}: ", "text") for number in range(9)]
    frames.append(Frame("long " * module.MAX_CACHED_PREFIX_CHARACTERS, "text"))
    found = tokenizer.encode_now(frames, Truncate.END)
    assert all(isinstance(tokens, Tokens) and tokens.shared > 1 for tokens in found[:9])
    info = tokenizer._cached_prefix.cache_info()
    assert (info.currsize, info.misses) == (3, 9)


@pytest.mark.parametrize(
    ("template", "values", "wanted"),
    [
        ("Instruct: {instruction}\nQuery:", {"instruction": "{query} {0} {}"}, "Instruct: {query} {0} {}\nQuery:"),
        ("{instruction}|{query}", {"instruction": "{query}", "query": "{instruction}"}, "{query}|{instruction}"),
        ('{"json": {query}}', {"query": "x"}, '{"json": x}'),
    ],
)  # fmt: skip
def test_braces_of_users_stay_as_they_are(template: str, values: dict[str, str], wanted: str) -> None:
    assert fill(template, **values) == wanted
