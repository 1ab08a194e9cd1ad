"""Texts of the parity tests: words that are one token each in the built tokenizers, and texts that are anything but."""

from __future__ import annotations

import random
import re

WORDS = tuple(
    re.findall(
        r"\w+",
        """
        river mountain paper engine garden window coffee signal market doctor winter summer forest bridge captain
        letter island castle silver copper engineer student teacher library kitchen music painting history science
        water fire stone road train station village city country house door table chair book story poem song dance
        light dark morning evening night day week month year hour minute second number answer question problem
        the a of and to in with for from by slowly quickly never always often here there green blue red white black
        opens closes finds keeps moves reads writes
        """,
    )
)
ODD_TEXTS = (
    "x",
    "Hello, world!",
    "  two  spaces and a trailing one ",
    "Ünïcödé, naïve café – «quotes»",
    "日本語のテキスト と 漢字",
    "🙂🚀 emoji joined",
    "a\tb\nc\r\nd",
    "https://example.org/path?query=1&other=%20#part",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}",
    "0123456789 3.14159 1e-12 -7/8 $5,000.00",
    "antidisestablishmentarianism",
    "Привет, мир! שלום عالم",
)


def text_of(num_words: int, generator: random.Random) -> str:
    """Words with a space between; a word is one token in every tokenizer that is built here."""
    return " ".join(generator.choices(WORDS, k=num_words))


def texts_of(count: int, *, seed: int, longest: int = 590) -> list[str]:
    """``count`` texts of 1 to ``longest`` words, both among them, most of them short; from 24 up odd ones too."""
    generator = random.Random(seed)
    odd = ODD_TEXTS if count >= 24 else ()
    lengths = [1, longest, *(round(longest ** generator.random()) for _ in range(count - 2 - len(odd)))]
    return [*(text_of(length, generator) for length in lengths), *odd]


def queries_of(count: int, *, seed: int) -> list[str]:
    """``count`` queries of 6 to 14 words."""
    generator = random.Random(seed)
    return [text_of(generator.randint(6, 14), generator) for _ in range(count)]
