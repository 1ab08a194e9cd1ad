"""A model's tokenizer, off the event loop, with the truth about length: a text is cut only if asked, and it is said."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer as FastTokenizer

from embedmux.server.errors import Cancelled, InvalidRequest, ModelRejected
from embedmux.server.records import Tokens, Truncate

# Below this many characters tokenising takes less time than the way to a thread and back.
INLINE_CHARACTERS = 256
# Texts tokenised at once: the library needs over a hundred bytes a token until the text is cut to what the model reads.
CHUNK_CHARACTERS = 1 << 16


class Tokenizer:
    """tokenizer.json of a model folder. ``max_tokens`` is the most the model reads, special tokens included."""

    def __init__(self, folder: Path, *, max_tokens: int, num_threads: int = 2) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelRejected(
                f"model {folder.name!r} has no tokenizer.json; save its fast tokenizer beside the weights"
            )
        self._tokenizer = FastTokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_tokens = max_tokens
        self._is_closed = False
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="embedmux-tokenizer")

    async def encode(self, texts: list[str], truncate: Truncate) -> list[Tokens | InvalidRequest]:
        """Token ids, special tokens added, of texts that already carry their prompts; an error per text without any."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return self.encode_now(texts, truncate)
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self.encode_now, texts, truncate, stop)
        finally:
            stop.set()  # a call that was cancelled, or whose deadline passed, gives its thread back

    def encode_now(
        self, texts: list[str], truncate: Truncate, stop: threading.Event | None = None
    ) -> list[Tokens | InvalidRequest]:
        """The same on the calling thread. Special tokens are kept when a text is cut; ``stop`` ends it early."""
        found: list[Tokens | InvalidRequest] = []
        for chunk in _chunks(texts):
            if self._is_closed or (stop is not None and stop.is_set()):
                raise Cancelled("nobody waits for these texts")
            found += [self._fit(encoded, truncate) for encoded in self._tokenizer.encode_batch_fast(chunk)]
        return found

    def pieces(self, ids: list[int]) -> list[str]:
        """The vocabulary entry of every id."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def close(self) -> None:
        """Ends the threads, at the next chunk of what they are reading."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fit(self, encoded: Encoded, truncate: Truncate) -> Tokens | InvalidRequest:
        ids: list[int] = encoded.ids
        if 0 < len(ids) <= self.max_tokens:
            return Tokens(ids, len(ids))
        if not ids:
            return InvalidRequest("the text has no tokens; send at least one character the model knows")
        if truncate is Truncate.NONE:
            return InvalidRequest(
                f"the text has {len(ids)} tokens, the model reads {self.max_tokens}; "
                "split it, or set truncate to END or START"
            )
        # The template's special tokens stand in a run at each end; only the content between them is cut.
        special: list[int] = encoded.special_tokens_mask
        head = next((i for i, flag in enumerate(special) if not flag), len(ids))
        tail = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
        content = ids[head : len(ids) - tail]
        room = self.max_tokens - head - tail
        kept = content[:room] if truncate is Truncate.END else content[-room:]
        return Tokens(ids[:head] + kept + ids[len(ids) - tail :], len(ids))


def _chunks(texts: list[str]) -> Iterator[list[str]]:
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
