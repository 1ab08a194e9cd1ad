"""jina-reranker-v3's prompt: a block of documents and the query in one sequence, with a marker behind each.

Source: format_docs_prompts_func and rerank of the published modeling.py (revision d7d7e73b); the paper is Wang, Li and
Xiao 2025, "Last but not late interaction".
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.records import Tokens, Truncate
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

PASSAGE_MARKER, QUERY_MARKER = "<|embed_token|>", "<|rerank_token|>"
MAX_QUERY_TOKENS, MAX_PASSAGE_TOKENS, MAX_PASSAGES = 512, 2048, 125
SYSTEM = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the "
    "ranking.<|im_end|>\n<|im_start|>user\n"
)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Passage:
    """A document as it stands in a prompt. ``original`` counts its tokens before the cut; ``num_tokens`` those left."""

    text: str = field(repr=False)
    num_tokens: int
    original: int


@dataclass(frozen=True, slots=True)
class Block:
    """One sequence: ``documents`` are places in the request, ``marks`` the positions of their markers, in order."""

    frame: Frame
    tokens: Tokens
    documents: tuple[int, ...]
    marks: tuple[int, ...]
    query_mark: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A request as it will be read: its blocks, each document's passage, and the errors of those that have none."""

    query: Passage
    blocks: list[Block]
    passages: dict[int, Passage]
    errors: dict[int, InvalidRequest]


class ListReader:
    """Makes the blocks of a request. ``max_tokens`` is the most of one sequence."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._passage_id, self._query_id = (self._marker_id(token) for token in (PASSAGE_MARKER, QUERY_MARKER))

    async def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None, truncate: Truncate
    ) -> Listing:
        """The blocks; raises InvalidRequest for an over-long instruction, or query that may not be cut."""
        num_characters = 2 * len(query) + sum(map(len, documents)) + len(instruction or "")
        return await self._tokenizer.run(
            num_characters,
            lambda stop: self.encode_now(query, documents, instruction=instruction, truncate=truncate, stop=stop),
        )

    def encode_now(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None,
        truncate: Truncate,
        stop: threading.Event | None = None,
    ) -> Listing:
        """The same on the calling thread. Markers within texts are taken out, as the model's own code does."""
        asked, *read = self._passages([query, *documents], truncate, stop)
        if isinstance(asked, InvalidRequest):
            raise asked
        if instruction:
            instruction = self._instruction(instruction, asked, stop)
        passages = {at: found for at, found in enumerate(read) if isinstance(found, Passage)}
        listing = Listing(
            asked, [], passages, {at: found for at, found in enumerate(read) if not isinstance(found, Passage)}
        )
        capacity = self._max_tokens - 2 * asked.num_tokens
        for members in _blocks({at: passage.num_tokens for at, passage in passages.items()}, capacity):
            self._add(listing, asked.text, members, instruction, stop)
        return listing

    def _instruction(self, instruction: str, asked: Passage, stop: threading.Event | None) -> str:
        """The instruction without markers; raises InvalidRequest for one that leaves no room for documents."""
        clean = _without_markers(instruction)
        if _has_marker(clean):
            raise _nested("instruction")
        (encoded,) = self._tokenizer.read([clean], stop, adds_specials=False)
        num_tokens, limit = len(encoded.ids), self._max_tokens - 2 * asked.num_tokens
        if num_tokens >= limit:
            raise InvalidRequest(
                f"the instruction has {num_tokens} tokens, the model reads {self._max_tokens} of which this query "
                f"leaves {limit} for instruction and documents; shorten it"
            )
        return clean

    def _passages(
        self, texts: list[str], truncate: Truncate, stop: threading.Event | None
    ) -> Iterator[Passage | InvalidRequest]:
        """Every text within its own limit; the first is the query."""
        clean = list(map(_without_markers, texts))
        read = self._tokenizer.read(clean, stop, adds_specials=False)
        for at, (text, encoded) in enumerate(zip(clean, read, strict=True)):
            name, limit = ("document", MAX_PASSAGE_TOKENS) if at else ("query", MAX_QUERY_TOKENS)
            num_tokens = len(encoded.ids)
            if _has_marker(text):
                yield _nested(name)
            elif num_tokens <= limit:
                yield Passage(text, num_tokens, num_tokens)
            elif truncate is Truncate.NONE:
                yield InvalidRequest(
                    f"the {name} has {num_tokens} tokens, the model reads {limit} of a {name}; "
                    "split it, or set truncate to END or START"
                )
            else:
                yield Passage(self._cut(text, limit, truncate), limit, num_tokens)

    def _cut(self, text: str, limit: int, truncate: Truncate) -> str:
        """The characters of the first, or for START the last, so many tokens."""
        offsets: list[tuple[int, int]] = self._tokenizer.library.encode(text, add_special_tokens=False).offsets
        return text[: offsets[limit - 1][1]] if truncate is Truncate.END else text[offsets[-limit][0] :]

    def _add(
        self, listing: Listing, query: str, members: list[int], instruction: str | None, stop: threading.Event | None
    ) -> None:
        """Appends the block of these documents, halved until it fits the model."""
        frame = Frame(
            SYSTEM,
            _request(query, [listing.passages[at].text for at in members], instruction),
            ANSWER,
            max_tokens=self._max_tokens,
        )
        (tokens,) = self._tokenizer.encode_now([frame], Truncate.NONE, stop)
        if isinstance(tokens, Tokens):
            marks = tuple(at for at, token in enumerate(tokens.ids) if token == self._passage_id)
            query_mark = tokens.ids.index(self._query_id)
            assert len(marks) == len(members)
            listing.blocks.append(Block(frame, tokens, tuple(members), marks, query_mark))
        elif len(members) == 1:
            listing.errors[members[0]] = tokens
            del listing.passages[members[0]]
        else:
            half = (len(members) + 1) // 2
            self._add(listing, query, members[:half], instruction, stop)
            self._add(listing, query, members[half:], instruction, stop)

    def _marker_id(self, token: str) -> int:
        found = self._tokenizer.library.token_to_id(token)
        if found is None:
            raise ModelRejected(f"tokenizer.json has no token {token!r}, which marks what a listwise reranker compares")
        return int(found)


def _without_markers(text: str) -> str:
    return text.replace(PASSAGE_MARKER, "").replace(QUERY_MARKER, "")


def _has_marker(text: str) -> bool:
    return PASSAGE_MARKER in text or QUERY_MARKER in text


def _nested(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"the {name} holds a marker, {PASSAGE_MARKER} or {QUERY_MARKER}, that another one hid; take both out"
    )


def _blocks(lengths: dict[int, int], capacity: int) -> Iterator[list[int]]:
    """Documents in order, cut into blocks by the rule of the model's own code; ``lengths`` are their tokens."""
    block: list[int] = []
    left = capacity
    for at, length in lengths.items():
        block.append(at)
        left -= length
        if len(block) >= MAX_PASSAGES or left <= MAX_PASSAGE_TOKENS:
            yield block
            block, left = [], capacity
    if block:
        yield block


def _request(query: str, passages: list[str], instruction: str | None) -> str:
    """The user's turn of the prompt."""
    parts = [
        f"I will provide you with {len(passages)} passages, each indicated by a numerical identifier. "
        f"Rank the passages based on their relevance to query: {query}\n"
    ]
    if instruction:
        parts.append(f"<instruct>\n{instruction}\n</instruct>\n")
    parts += [f'<passage id="{at}">\n{text}{PASSAGE_MARKER}\n</passage>\n' for at, text in enumerate(passages)]
    parts.append(f"<query>\n{query}{QUERY_MARKER}\n</query>")
    return "".join(parts)
