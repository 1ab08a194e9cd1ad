"""A query with a document as cross-encoders read them: the tokenizer's own pair."""

import threading
from collections.abc import Sequence

from embedmux.server.errors import InvalidRequest, ModelRejected
from embedmux.server.records import Tokens, Truncate
from embedmux.server.text import specials
from embedmux.server.text.tokenizer import Tokenizer


class PairReader:
    """Pairs of at most ``max_tokens``, special tokens included, of which a query may take ``max_query_share``."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, max_query_share: float) -> None:
        if (found := specials.of_pair(tokenizer.library)) is None:
            raise ModelRejected("tokenizer.json has no tokens for plain letters and digits")
        if not found.has_two_types:
            raise ModelRejected("tokenizer.json gives a pair's tokens other types than zeros, then ones")
        self._tokenizer = tokenizer
        self._specials = found
        self._max_tokens = max_tokens
        # At least one token of the document has to have room.
        self._max_query_tokens = min(int(max_query_share * max_tokens), max_tokens - found.num_tokens - 1)

    async def encode(self, query: str, documents: Sequence[str], truncate: Truncate) -> list[Tokens | InvalidRequest]:
        """Token ids of the query with each document, or why there are none; raises InvalidRequest for the query's.

        If a cut is asked for, the query is cut to its share and the document to what is left.
        """
        sizes = [len(query) + len(document) for document in documents]
        return await self._tokenizer.spread(
            sizes, lambda part, stop: self.encode_now(query, documents[part], truncate, stop)
        )

    def encode_now(
        self, query: str, documents: Sequence[str], truncate: Truncate, stop: threading.Event | None = None
    ) -> list[Tokens | InvalidRequest]:
        """The same on the calling thread."""
        read = self._tokenizer.read([query, *documents], stop, adds_specials=False)
        asked: list[int] = next(read).ids
        limit = self._max_query_tokens
        if len(asked) > limit and truncate is Truncate.NONE:
            raise InvalidRequest(
                f"the query has {len(asked)} tokens, the model reads {limit} beside a document; "
                "shorten it, or set truncate to END or START"
            )
        kept = _cut(asked, limit, truncate)
        return [self._tokenizer.known(self._join(kept, len(asked), encoded.ids, truncate)) for encoded in read]

    def render(self, query: str, document: str) -> str:
        """What the model reads, with the special tokens written out."""
        head, middle, tail = (
            "".join(self._tokenizer.pieces(ids))
            for ids in (self._specials.head, self._specials.middle, self._specials.tail)
        )
        return f"{head}{query}{middle}{document}{tail}"

    def _join(
        self, query: list[int], query_original: int, document: list[int], truncate: Truncate
    ) -> Tokens | InvalidRequest:
        around = self._specials
        original = query_original + len(document) + around.num_tokens
        room = self._max_tokens - len(query) - around.num_tokens
        if len(document) > room and truncate is Truncate.NONE:
            return InvalidRequest(
                f"the document has {original} tokens together with the query, the model reads {self._max_tokens}; "
                "split it, or set truncate to END or START"
            )
        begin = len(around.head) + len(query)
        return Tokens(
            [*around.head, *query, *around.middle, *_cut(document, room, truncate), *around.tail],
            original,
            second=0 if around.second is None else begin + around.second,
        )


def _cut(ids: list[int], limit: int, truncate: Truncate) -> list[int]:
    """At most ``limit`` ids: the first ones, or for START the last."""
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if truncate is Truncate.START else ids[:limit]
