"""Ids of single tokens, looked up in tokenizer.json as JSON: families need a few, the text room needs the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedmux.server.checkpoint.folder import Config, ModelFolder


@dataclass(frozen=True)
class TokenIds:
    """The vocabulary of a folder, read when the first id is asked for: the file is large."""

    folder: ModelFolder

    def require(self, token: str) -> int:
        """The id of a token; raises ModelRejected, naming it, where the tokenizer has none."""
        found = self.find(token)
        if found is None:
            self.folder.reject(f"tokenizer.json has no token {token!r}, which this family needs")
        return found

    def find(self, *tokens: str) -> int | None:
        """The id of the first of some spellings that is a token, or None."""
        return next((self._ids[token] for token in tokens if token in self._ids), None)

    @cached_property
    def _config(self) -> Config:
        return self.folder.tokenizer()

    @cached_property
    def _ids(self) -> dict[str, int]:
        config = self._config
        vocab: Any = config.section("model").get("vocab", {})
        if isinstance(vocab, list):  # Unigram: pairs of token and score, the id is the place
            found = {entry[0]: place for place, entry in enumerate(vocab) if isinstance(entry, list) and entry}
        elif isinstance(vocab, dict):
            found = dict(vocab)
        else:
            config.folder.reject("tokenizer.json: model.vocab must be an object or an array")
        for added in config.get("added_tokens", []):
            if isinstance(added, dict) and isinstance(added.get("id"), int):
                found[added.get("content")] = added["id"]
        return found
