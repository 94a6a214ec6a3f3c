"""Names and globs: ``*`` stands for any run of characters, everything else for itself.

Linear in the length of name and pattern, whatever the pattern; no regular expression is involved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

NAME = re.compile(r"[A-Za-z0-9_.:/*-]{1,128}")
"""What a tool name or glob may look like."""


def is_glob(pattern: str) -> bool:
    """Whether the pattern can match more than one name."""
    return "*" in pattern


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` matches ``pattern`` as a whole; case matters."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def any_matches(patterns: Iterable[str], name: str) -> bool:
    """Whether ``name`` matches one of ``patterns``."""
    return any(matches(pattern, name) for pattern in patterns)


def any_of(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether a name matches one of the patterns."""
    patterns = tuple(patterns)
    exact = frozenset(p for p in patterns if not is_glob(p))
    globs = tuple(p for p in patterns if is_glob(p))
    if not globs:
        return exact.__contains__
    if "*" in globs:
        return lambda name: True  # noqa: ARG005 - same shape as the others
    return lambda name: name in exact or any(matches(p, name) for p in globs)
