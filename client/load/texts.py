"""Texts to send, without end: made of common words in lengths like real ones, or drawn from a caller's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from embedmux.client.load.words import WORDS

LengthsName = Literal["short", "mixed", "long"]

# Three words tell texts apart: text n is the number n * STRIDE in base len(WORDS), and a prime stride, coprime to the
# base, meets every number once before it meets one again.
NUM_DISTINCT = len(WORDS) ** 3
STRIDE = 2_654_435_761
BLOCK = 32  # drawn at once: numpy's calls cost less a text, and a block's making delays a send by less than 1 ms


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal numbers of words, from ``least`` to ``most``: half of the texts have fewer than ``median``."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, generator: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """``count`` numbers of words."""
        drawn = generator.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(np.rint(drawn), self.least, self.most).astype(np.int64)


# Queries are a few words with a long tail. Paragraphs stay below 256 tokens, the limit of small models.
QUERIES = Lengths(median=6, sigma=0.55, least=3, most=40)
PARAGRAPHS = Lengths(median=90, sigma=0.4, least=30, most=180)
SHARE_OF_PARAGRAPHS: dict[LengthsName, float] = {"short": 0.0, "mixed": 0.2, "long": 1.0}


def draw_lengths(name: LengthsName, generator: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Numbers of words of ``count`` texts: queries, and paragraphs in the share that ``name`` stands for."""
    is_paragraph = generator.random(count) < SHARE_OF_PARAGRAPHS[name]
    return np.where(is_paragraph, PARAGRAPHS.draw(generator, count), QUERIES.draw(generator, count))


def made_texts(name: LengthsName, generator: np.random.Generator, *, first: int = 0, step: int = 1) -> Iterator[str]:
    """Texts number ``first``, ``first + step`` and so on; different numbers are different texts, up to NUM_DISTINCT."""
    base, number = len(WORDS), first
    while True:
        lengths = draw_lengths(name, generator, BLOCK).tolist()
        ids = iter(generator.integers(base, size=sum(lengths)).tolist())
        for length in lengths:
            code = number * STRIDE % NUM_DISTINCT
            own = (code // base // base, code // base % base, code % base)
            yield " ".join([WORDS[id] for id in own] + [WORDS[next(ids)] for _ in range(length - len(own))])
            number += step


def sampled_texts(texts: Sequence[str], generator: np.random.Generator) -> Iterator[str]:
    """Texts of the caller's, each drawn with equal chance, again and again."""
    while True:
        for index in generator.integers(len(texts), size=BLOCK).tolist():
            yield texts[index]
