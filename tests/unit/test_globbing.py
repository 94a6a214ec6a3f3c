"""Names and globs: a star is any run of characters, everything else is itself, and nothing takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.globbing import NAME, any_matches, any_of, is_glob, matches


@given(st.text("ab.*", max_size=8), st.text("ab.", max_size=12))
def test_a_glob_matches_what_the_same_expression_matches(pattern: str, text: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, text) == (re.fullmatch(expression, text, re.DOTALL) is not None)


@pytest.mark.parametrize(
    ("pattern", "text", "wanted"),
    [
        ("orders.*", "orders.get", True),
        ("orders.*", "orders.", True),
        ("orders.*", "orders", False),
        ("orders.*", "my.orders.get", False),
        ("orders.get", "Orders.get", False),
        ("a?c", "abc", False),
        ("[ab]", "a", False),
        ("aba*aba", "aba", False),
        ("aba*aba", "abaaba", True),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_globs_by_example(pattern: str, text: str, wanted: bool) -> None:
    assert matches(pattern, text) is wanted
    assert any_matches(["x", pattern], text) is wanted
    assert any_of(["x", pattern])(text) is wanted


def test_only_a_star_makes_a_glob() -> None:
    assert [is_glob(p) for p in ("a", "a*", "a?", "[a]")] == [False, True, False, False]


def test_many_names_are_one_look_up() -> None:
    assert any_of(["a", "b"])("b")
    assert not any_of(["a", "b"])("c")
    assert not any_of([])("c")
    assert any_of(["a", "*"])("c")
    assert not any_matches([], "c")


def test_no_pattern_takes_long() -> None:
    begun = time.thread_time()
    assert not matches("*a" * 60 + "*b", "a" * 5000)
    assert time.thread_time() - begun < 1


def test_a_name_holds_nothing_strange() -> None:
    assert NAME.fullmatch("orders.get:v1/x-*")
    for bad in ("", "a b", "a\n", "ü", "a" * 129):
        assert not NAME.fullmatch(bad)
