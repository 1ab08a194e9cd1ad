"""Regular expressions from adapter configs, matched in bounded time.

Python's own matcher backtracks, so a config with ``((.*)*)*x`` would hang the process that reads it. Here the set of
places where each part can end is computed once per part and start: polynomial in the length of the name, whatever
the expression. Groups, alternatives, classes, anchors and repeats are known; look-around, back references, flags and
possessive repeats are refused by name. Method: Thompson, "Regular Expression Search Algorithm", CACM 11(6), 1968.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from embedmux.server.adapters.files import reject, shown

MAX_LENGTH = 1000
MAX_DEPTH = 20
# A whole expression that cannot backtrack: names, dots and escaped dots, which is what most configs hold.
PLAIN = re.compile(r"(\w|\.|\\\.)+")
# One character or one anchor; both are matched by Python, which cannot backtrack over a single step.
STEP = re.compile(r"\\[dDwWsSbBAZ]|\\[^a-zA-Z0-9]|\[\^?\]?([^\]\\\[&~|-]|-(?!-)|\\.)*\]|[^\\\[\](){}*+?|]")
GROUP = re.compile(r"\((\?:|\?P<\w+>|(?!\?))")
REPEAT = re.compile(r"([*+?]|\{(\d{1,4})\}|\{(\d{0,4}),(\d{0,4})\})\??(?!\+)")


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    branches: tuple[_Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Repeat:
    item: _Node
    least: int
    most: int | None


_Node = _Step | _Sequence | _Choice | _Repeat


class Pattern:
    """One expression of a config; with ``is_suffix`` it may stand for the end of a name, after a dot."""

    def __init__(self, source: str, key: str, owner: str, *, is_suffix: bool = False) -> None:
        where = f"{key} has the regular expression {shown(source)}, which"
        if len(source) > MAX_LENGTH:
            reject(owner, f"{where} is longer than {MAX_LENGTH} characters; list the modules instead")
        whole = rf"(.*\.)?({source})" if is_suffix else source
        parsed: _Node | None = None
        try:
            if not PLAIN.fullmatch(source):
                parsed = _parse(whole)
            self._plain = re.compile(whole)
        except (ValueError, re.error, OverflowError) as error:
            reject(owner, f"{where} cannot be used: {error}; list the modules instead")
        self._parsed = parsed

    def fullmatch(self, name: str) -> bool:
        """Whether the expression matches all of ``name``."""
        if self._parsed is None:
            return self._plain.fullmatch(name) is not None
        return len(name) in _ends(self._parsed, 0, name, {})


def _ends(node: _Node, start: int, text: str, known: dict[tuple[_Node, int], frozenset[int]]) -> frozenset[int]:
    """Every place where a match of ``node`` from ``start`` can end. ``known`` holds the answers for this text."""
    found = known.get((node, start))
    if found is not None:
        return found

    def from_all(item: _Node, places: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(_ends(item, place, text, known) for place in places))

    ends = frozenset([start])
    match node:
        case _Step(pattern):
            step = pattern.match(text, start)
            ends = frozenset([step.end()] if step else [])
        case _Sequence(items):
            for item in items:
                ends = from_all(item, ends)
        case _Choice(branches):
            ends = frozenset().union(*(_ends(branch, start, text, known) for branch in branches))
        case _Repeat(item, least, most):
            # Places only move forward, so after as many rounds as there are places nothing changes any more.
            enough = len(text) + 2
            for _ in range(min(least, enough)):
                ends = from_all(item, ends)
            added = ends
            for _ in range(enough if most is None else min(most - least, enough)):
                added = from_all(item, added) - ends
                if not added:
                    break
                ends |= added
    known[node, start] = ends
    return ends


def _parse(source: str) -> _Node:
    """The tree of an expression. Raises ValueError with what is not supported and where."""
    node, end = _parse_choice(source, 0, 0)
    if end != len(source):
        raise ValueError(f"there is a ')' too many at character {end}")
    return node


def _parse_choice(source: str, at: int, depth: int) -> tuple[_Node, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"groups are nested more than {MAX_DEPTH} deep")
    branches: list[_Node] = []
    items: list[_Node] = []
    while at < len(source) and source[at] != ")":
        if source[at] == "|":
            branches.append(_Sequence(tuple(items)))
            items = []
            at += 1
        else:
            item, at = _parse_item(source, at, depth)
            items.append(item)
    return _Choice((*branches, _Sequence(tuple(items)))), at


def _parse_item(source: str, at: int, depth: int) -> tuple[_Node, int]:
    node: _Node
    if step := STEP.match(source, at):
        node, at = _Step(re.compile(step[0])), step.end()
    elif group := GROUP.match(source, at):
        node, at = _parse_choice(source, group.end(), depth + 1)
        if at == len(source):
            raise ValueError("a group is not closed")
        at += 1
    else:
        raise ValueError(f"{shown(source[at : at + 3])} at character {at} is not supported")
    repeat = REPEAT.match(source, at)
    if repeat is None:
        return node, at
    sign, exact, least, most = repeat.groups()
    if sign in "*+?":
        return _Repeat(node, int(sign == "+"), 1 if sign == "?" else None), repeat.end()
    if exact:
        return _Repeat(node, int(exact), int(exact)), repeat.end()
    return _Repeat(node, int(least or 0), int(most) if most else None), repeat.end()
