"""Texts for late interaction: the side's marker, queries filled with masks, and which tokens have a vector."""

import numpy as np

from embedmux.server.contract import LateContract
from embedmux.server.errors import EngineFailure
from embedmux.server.records import Role, Tokens
from embedmux.server.text.frames import Frame


class LateReader:
    """What a late-interaction model does to a text before and behind the engine; without a role it is a document."""

    def __init__(self, late: LateContract) -> None:
        self._late = late
        self._skipped = np.array(late.skipped, dtype=np.int64)

    @property
    def is_sided(self) -> bool:
        """Whether the same text has other tokens or other vectors as a query than as a document."""
        late = self._late
        queries, documents = (late.query_prefix, late.query_marker), (late.document_prefix, late.document_marker)
        return queries != documents or late.query_tokens is not None or bool(late.skipped)

    def frame(self, prompt: str, text: str, suffix: str, role: Role | None) -> Frame:
        """The text's frame with its side's prefix and marker, and a query's own limit."""
        late = self._late
        if role is Role.QUERY:
            return Frame(late.query_prefix + prompt, text, suffix, late.query_tokens, late.query_marker)
        return Frame(late.document_prefix + prompt, text, suffix, None, late.document_marker)

    def expand(self, tokens: Tokens, role: Role | None) -> Tokens:
        """A query filled up with mask tokens; a document as it is."""
        late = self._late
        if role is not Role.QUERY or late.query_tokens is None or len(tokens.ids) >= late.query_tokens:
            return tokens
        assert late.mask_token is not None, "a contract that fills queries names the token"
        ids = tokens.ids + [late.mask_token] * (late.query_tokens - len(tokens.ids))
        return Tokens(ids, max(tokens.original, len(ids)), shared=tokens.shared)

    def select(self, vectors: bytes, row_bytes: int, tokens: Tokens, role: Role | None) -> bytes:
        """The vectors that count, of the engine's one for each token: rows of ``row_bytes`` bytes.

        The engine chooses by token alone (``LateContract.kept``); what depends on the side is left out here.
        """
        if self._late.kept:
            return vectors
        if len(vectors) != row_bytes * len(tokens.ids):
            raise EngineFailure(
                f"the engine gave {len(vectors) // row_bytes} token vectors for a text of {len(tokens.ids)} tokens"
            )
        is_kept = np.ones(len(tokens.ids), dtype=bool)
        if role is not Role.QUERY and len(self._skipped):
            is_kept &= ~np.isin(tokens.ids, self._skipped)
        if self._late.skips_first:
            is_kept[:1] = False
        if is_kept.all():
            return vectors
        return np.frombuffer(vectors, dtype=np.uint8).reshape(-1, row_bytes)[is_kept].tobytes()
