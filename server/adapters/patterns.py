"""Regular expressions from adapter configs, matched as PEFT matches them."""

from __future__ import annotations

import re

from embedmux.server.adapters.files import reject, shown


class Pattern:
    """One expression; ``fullmatch`` says whether it covers a whole module name."""

    def __init__(self, source: str, key: str, owner: str) -> None:
        try:
            self._pattern = re.compile(source)
        except (re.error, RecursionError, OverflowError) as error:
            reject(owner, f"{key} has the regular expression {shown(source)}, which is broken: {error}")

    def fullmatch(self, name: str) -> bool:
        """Whether the expression matches all of ``name``."""
        return self._pattern.fullmatch(name) is not None
