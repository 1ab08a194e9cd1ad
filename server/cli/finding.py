"""What the doctor says of one thing it looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; ``fix`` is what to do about it, or where to read on."""

    name: str
    state: Literal["ok", "note", "fault"]
    detail: str
    fix: str = ""
