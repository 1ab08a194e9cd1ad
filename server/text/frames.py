"""What stands around a text when a model reads it."""

import re
from dataclasses import dataclass, field

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Frame:
    """One text as it is read: all three tokenised as one string, of which only ``text`` may be cut.

    ``max_tokens`` is this text's own limit where it is below the model's, special tokens included. ``marker`` is the id
    of a token that is put behind the first one once the rest is tokenised.
    """

    prefix: str = field(repr=False)
    text: str = field(repr=False)
    suffix: str = field(default="", repr=False)
    max_tokens: int | None = None
    marker: int | None = None

    @property
    def rendered(self) -> str:
        """The string that is tokenised."""
        return self.prefix + self.text + self.suffix

    @property
    def num_characters(self) -> int:
        """Its length, without building it."""
        return len(self.prefix) + len(self.text) + len(self.suffix)


def fill(template: str, **values: str) -> str:
    """The template with its {names} replaced in one pass: braces within a value, and other braces, stay as they are."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)
