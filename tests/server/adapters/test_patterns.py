"""Expressions match what Python's matcher says they match, and never take long to say so."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmux.server.adapters.patterns import Pattern
from embedmux.server.errors import AdapterRejected

PIECES = st.sampled_from([*"ab1.|()*+?^$", "*?", "{2}", "{1,}", "{,2}", "{0,3}", "(?:", "(?P<n>", r"\d", r"\w", r"\."])
PIECES |= st.sampled_from(["[ab]", "[^a]", "[a-c1]", "[]a]", r"\b", ".*", "(a|b)", "(a|ab)(c|bcd)"])
NAMES = st.text("ab1.", max_size=12)


def pattern(source: str, *, is_suffix: bool = False) -> Pattern:
    return Pattern(source, "target_modules", "adapter 'x'", is_suffix=is_suffix)


@settings(max_examples=1500, deadline=None)
@given(source=st.lists(PIECES, max_size=7).map("".join), names=st.lists(NAMES, min_size=1, max_size=4))
def test_an_accepted_expression_matches_as_python_matches(source: str, names: list[str]) -> None:
    try:
        ours = pattern(source)
    except AdapterRejected:
        return
    for name in names:
        assert ours.fullmatch(name) == (re.fullmatch(source, name) is not None)


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        (r".*\.(query|value)", "encoder.layer.0.attention.self.query", True),
        (r".*\.(query|value)", "encoder.layer.0.attention.self.key", False),
        (r"encoder\.layer\.[01]\.attention\..*", "encoder.layer.1.attention.output.dense", True),
        (r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)", "layers.3.self_attn.q_proj", True),
        (r"model\.layers\.[\d]{1,}\.mlp\.(?:up|down)_proj", "model.layers.12.mlp.up_proj", True),
        (r"model\.layers\.[\d]{1,}\.mlp\.(?:up|down)_proj", "model.layers.x.mlp.up_proj", False),
    ],
)
def test_expressions_seen_in_the_wild_are_served(source: str, name: str, expected: bool) -> None:
    assert pattern(source).fullmatch(name) is expected


def test_a_suffix_expression_starts_after_a_dot() -> None:
    assert pattern("query", is_suffix=True).fullmatch("self.query")
    assert pattern("query", is_suffix=True).fullmatch("query")
    assert not pattern("query", is_suffix=True).fullmatch("self.subquery")


@pytest.mark.parametrize(
    "source", [r"(a)\1", "(?=a)a", "(?i)a", "a*+", "a)(b", "(a", "[a", "a{3,2}", "a" * 1001, "(" * 30]
)
def test_expressions_beyond_the_known_parts_are_refused(source: str) -> None:
    with pytest.raises(AdapterRejected, match="target_modules has the regular expression"):
        pattern(source)


@pytest.mark.parametrize(
    "source", ["((.*)*)*x", "(a|a)*x", "(a?){60}a{60}x", "(a|aa)+x", ".*" * 60 + "x", "((a{9}){9}){9}x"]
)
def test_no_expression_takes_long(source: str) -> None:
    start = time.process_time()
    assert not pattern(source).fullmatch("a" * 60)
    assert time.process_time() - start < 2
