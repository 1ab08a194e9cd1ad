"""Which special tokens a tokenizer puts around one text and around two, found by letting it read a probe."""

from dataclasses import dataclass

from tokenizers import Tokenizer as FastTokenizer

PROBES = ("a", "e", "1", ".", "the")  # the first one that has tokens is taken


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids before and behind one text."""

    head: list[int]
    tail: list[int]


@dataclass(frozen=True, slots=True)
class PairSpecials:
    """Ids before, between and behind two texts.

    ``second``: where token type 1 begins, counted in tokens from the end of the first text; None if all are of type 0.
    ``has_two_types``: whether the types are zeros and, from there on, ones.
    """

    head: list[int]
    middle: list[int]
    tail: list[int]
    second: int | None
    has_two_types: bool

    @property
    def num_tokens(self) -> int:
        """Special tokens of a pair."""
        return len(self.head) + len(self.middle) + len(self.tail)


def of_one(tokenizer: FastTokenizer) -> Specials | None:
    """What stands around one text; None if the tokenizer reads none of the probes."""
    if (found := _probe(tokenizer)) is None:
        return None
    text, plain = found
    ids: list[int] = tokenizer.encode(text).ids
    start = _find(plain, ids, 0)
    return Specials(ids[:start], ids[start + len(plain) :])


def of_pair(tokenizer: FastTokenizer) -> PairSpecials | None:
    """What stands around two texts; None if the tokenizer reads none of the probes."""
    if (found := _probe(tokenizer)) is None:
        return None
    text, plain = found
    encoded = tokenizer.encode(text, text)
    ids: list[int] = encoded.ids
    first = _find(plain, ids, 0)
    first_end = first + len(plain)
    second = _find(plain, ids, first_end)
    types: list[int] = encoded.type_ids
    return PairSpecials(
        head=ids[:first],
        middle=ids[first_end:second],
        tail=ids[second + len(plain) :],
        second=types.index(1) - first_end if 1 in types else None,
        has_two_types=set(types) <= {0, 1} and types == sorted(types),
    )


def _probe(tokenizer: FastTokenizer) -> tuple[str, list[int]] | None:
    read = ((text, tokenizer.encode(text, add_special_tokens=False).ids) for text in PROBES)
    return next((found for found in read if found[1]), None)


def _find(plain: list[int], ids: list[int], start: int) -> int:
    return next(at for at in range(start, len(ids)) if ids[at : at + len(plain)] == plain)
