"""A model's tokenizer, off the event loop, with the truth about length: a text is cut only if asked, and it is said."""

import asyncio
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer as FastTokenizer

from embedmux.server.contract import Contract
from embedmux.server.errors import Cancelled, InvalidRequest, ModelRejected
from embedmux.server.records import Tokens, Truncate
from embedmux.server.text import specials
from embedmux.server.text.cut import text_run
from embedmux.server.text.frames import Frame

# Threads of the library's own would take the engine's processors; requests are read beside each other as it is. Whoever
# has set the library's own variable keeps what it says.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Result = TypeVar("Result")

# Below this many characters tokenising takes less time than the way to a thread and back.
INLINE_CHARACTERS = 256
# A request with more characters than that for each thread is read by several.
PART_CHARACTERS = 1 << 14
# Texts tokenised at once: the library needs over a hundred bytes a token until the text is cut to what the model reads.
CHUNK_CHARACTERS = 1 << 16
# Prompts whose tokens are remembered. Longer ones are a reranker's, with its query inside, and not seen again.
MAX_CACHED_PREFIXES = 512
MAX_CACHED_PREFIX_CHARACTERS = 2048


class Tokenizer:
    """tokenizer.json of a model folder, read as the model's contract says."""

    def __init__(self, folder: Path, contract: Contract, *, num_threads: int = 2) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelRejected(
                f"model {folder.name!r} has no tokenizer.json; save its fast tokenizer beside the weights"
            )
        try:
            self.library = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more particular
            raise ModelRejected(f"model {folder.name!r}: cannot read tokenizer.json: {error}") from error
        self.library.no_padding()
        self.library.no_truncation()
        self.max_tokens = contract.max_tokens
        self._vocabulary = contract.vocabulary or 0
        self._has_strangers = 0 < self._vocabulary <= max(self.library.get_vocab().values(), default=0)
        if (found := specials.of_one(self.library)) is None:
            raise ModelRejected(f"model {folder.name!r}: tokenizer.json has no tokens for plain letters and digits")
        self._specials = found
        # Tokens that the model needs and the tokenizer does not put by itself.
        probe = self.library.encode(specials.PROBES[0] + contract.suffix).ids
        self._beginning = _unless_there(contract.beginning, probe[:1])
        self._ending = _unless_there(contract.ending, probe[-1:])
        self._cached_prefix = functools.lru_cache(MAX_CACHED_PREFIXES)(self._read_prefix)
        self._is_closed = False
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="embedmux-tokenizer")

    async def encode(self, frames: Sequence[Frame], truncate: Truncate) -> list[Tokens | InvalidRequest]:
        """Token ids of the frames, special tokens added; an error for each text without any, or with too many."""
        sizes = [frame.num_characters for frame in frames]
        return await self.spread(sizes, lambda part, stop: self.encode_now(frames[part], truncate, stop))

    def encode_now(
        self, frames: Sequence[Frame], truncate: Truncate, stop: threading.Event | None = None
    ) -> list[Tokens | InvalidRequest]:
        """The same on the calling thread; ``stop`` ends it early.

        A cut takes tokens of the text alone: prompt, suffix and special tokens stay.
        """
        prefixes = {prefix: self._prefix(prefix) for prefix in {frame.prefix for frame in frames}}
        read = self.read([frame.rendered for frame in frames], stop)
        found = [
            self._fit(frame, encoded, prefixes[frame.prefix], truncate)
            for frame, encoded in zip(frames, read, strict=True)
        ]
        return [self.known(tokens) for tokens in found] if self._has_strangers else found

    async def run(self, num_characters: int, work: Callable[[threading.Event], Result]) -> Result:
        """What ``work`` returns, computed here if there is little to read, else on a thread of the tokenizer."""
        stop = threading.Event()
        if num_characters <= INLINE_CHARACTERS:
            return work(stop)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
        finally:
            stop.set()  # a call that was cancelled, or whose deadline passed, gives its thread back

    async def spread(
        self, sizes: Sequence[int], work: Callable[[slice, threading.Event], list[Result]]
    ) -> list[Result]:
        """What ``work`` makes of texts of so many characters, a part of them at a time: of many on several threads."""
        parts = _cut(sizes, min(self._num_threads, sum(sizes) // PART_CHARACTERS))
        found = await asyncio.gather(*(self.run(sum(sizes[part]), functools.partial(work, part)) for part in parts))
        return list(itertools.chain.from_iterable(found))

    def read(
        self, texts: Sequence[str], stop: threading.Event | None = None, *, adds_specials: bool = True
    ) -> Iterator[Encoded]:
        """What the library makes of each text, offsets left out; raises Cancelled between chunks once stopped."""
        for chunk in _chunks(texts):
            if self._is_closed or (stop is not None and stop.is_set()):
                raise Cancelled("nobody waits for these texts")
            yield from self.library.encode_batch_fast(chunk, add_special_tokens=adds_specials)

    def known(self, tokens: Tokens | InvalidRequest) -> Tokens | InvalidRequest:
        """The tokens, or an error where one of them has no row in the model's table."""
        if not self._has_strangers or isinstance(tokens, InvalidRequest) or max(tokens.ids) < self._vocabulary:
            return tokens
        stranger = next(token for token in tokens.ids if token >= self._vocabulary)
        return InvalidRequest(
            f"the text has the token {self.library.id_to_token(stranger)!r} with id {stranger}, the model's table ends "
            f"at {self._vocabulary - 1}; leave it out"
        )

    def num_prefix_tokens(self, prefix: str) -> int:
        """Tokens of a prefix read alone, with the special tokens that stand before it."""
        return len(self._prefix(prefix))

    def pieces(self, ids: list[int]) -> list[str]:
        """The vocabulary entry of every id."""
        return [self.library.id_to_token(token_id) or "" for token_id in ids]

    def close(self) -> None:
        """Ends the threads, at the next chunk of what they are reading."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fit(self, frame: Frame, encoded: Encoded, prefix: list[int], truncate: Truncate) -> Tokens | InvalidRequest:
        ids: list[int] = encoded.ids
        if self._beginning or self._ending:
            ids = [*self._beginning, *ids, *self._ending]
        if not ids:
            return InvalidRequest("the text has no tokens; send at least one character the model knows")
        marker = [] if frame.marker is None else [frame.marker]
        original = len(ids) + len(marker)
        limit = min(frame.max_tokens or self.max_tokens, self.max_tokens)
        if original > limit:
            if truncate is Truncate.NONE:
                return InvalidRequest(
                    f"the text has {original} tokens, the model reads {limit}; "
                    "split it, or set truncate to END or START"
                )
            first, behind = self._text_run(frame)
            room = limit - original + (behind - first)
            if room < 1:
                return InvalidRequest(
                    f"the text has {original} tokens, the model reads {limit}, and all but {behind - first} belong to "
                    "the prompt and the special tokens; use a shorter prompt"
                )
            kept = ids[first : first + room] if truncate is Truncate.END else ids[behind - room : behind]
            ids = ids[:first] + kept + ids[behind:]
        if marker:
            return Tokens([*ids[:1], *marker, *ids[1:]], original)
        return Tokens(ids, original, shared=_num_common(ids, prefix) if prefix else 0)

    def _text_run(self, frame: Frame) -> tuple[int, int]:
        """The text's own tokens among all of its frame. Reads the frame again, since offsets cost time and memory."""
        head, tail = len(self._specials.head), len(self._specials.tail)
        offsets: list[tuple[int, int]] = self.library.encode(frame.rendered).offsets
        first, behind = text_run(offsets[head : len(offsets) - tail], frame)
        before = len(self._beginning) + head
        return before + first, before + behind

    def _prefix(self, prefix: str) -> list[int]:
        if not prefix:
            return []
        return self._read_prefix(prefix) if len(prefix) > MAX_CACHED_PREFIX_CHARACTERS else self._cached_prefix(prefix)

    def _read_prefix(self, prefix: str) -> list[int]:
        """The ids of a prompt read alone, with the special tokens that stand before it."""
        ids: list[int] = self.library.encode(prefix, add_special_tokens=False).ids
        return [*self._beginning, *self._specials.head, *ids]


def _unless_there(token: int | None, ids: list[int]) -> list[int]:
    return [] if token is None or token in ids else [token]


def _num_common(ids: list[int], prefix: list[int]) -> int:
    """How many leading ids are the prefix's; one token at least is left to the text."""
    most = min(len(prefix), len(ids) - 1)
    if ids[:most] == prefix[:most]:
        return most
    return next(at for at in range(most) if ids[at] != prefix[at])


def _cut(sizes: Sequence[int], count: int) -> list[slice]:
    """At most ``count`` runs of texts of about the same size together, one at least."""
    parts: list[slice] = []
    first, total, read = 0, sum(sizes), 0
    for index, size in enumerate(sizes):
        read += size
        if len(parts) + 1 < count and read * count >= total * (len(parts) + 1):
            parts.append(slice(first, index + 1))
            first = index + 1
    return [*parts, slice(first, len(sizes))]


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts of at most CHUNK_CHARACTERS, or one longer text alone."""
    chunk: list[str] = []
    num_characters = 0
    for text in texts:
        if chunk and num_characters + len(text) > CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
        chunk.append(text)
        num_characters += len(text)
    if chunk:
        yield chunk
