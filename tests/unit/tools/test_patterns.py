"""Without a linear engine only patterns that are linear by construction are accepted."""

from __future__ import annotations

import pytest

from agentguard.tools.patterns import check_pattern


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("^[A-Z]-[0-9]+$", "A-12", "A-12\n"),
        ("^abc", "abcd", "xabc"),
        ("a.c", "xabc", "ac"),
        (r"^\d{1,3}$", "12", "\u0661"),
        ("^(foo|bar)$", "bar", "baz"),
        ("^a*?b$", "aab", "c"),
        (r"^[$]\$$", "$$", "$"),
        ("^(?:ab){2}$", "abab", "ab"),
        ("^[^@]+$", "ab", "a@b"),
        ("^a{1,1000}b$", "aab", "b"),
        (r"\Aa", "ab", "ba"),
    ],
)
def test_linear_patterns_mean_what_they_mean_in_json_schema(pattern: str, matching: str, other: str) -> None:
    compiled = check_pattern(pattern)
    assert compiled.search(matching)
    assert not compiled.search(other)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+$", "a*b", "^a*a*$", "^(a|aa)*$", "^(?=a)b", r"^(a)\1$", "(", "^(ab)*$", "^(a*){3}$"),
        *("^(a{1,100}){1,100}$", "(?<=a)b", "^a*|b*$", "[", "a**"),
    ],
)
def test_everything_else_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|linear|repeat"):
        check_pattern(pattern)
