"""Names and globs: ``*`` stands for any run of characters, ``?`` for one; nothing else is special.

Matching takes time proportional to pattern times text at worst and never backtracks beyond the last star,
so no pattern can be made to hang (the standard library's ``fnmatch`` goes through ``re``).
"""

from __future__ import annotations

from collections.abc import Iterable


def is_glob(pattern: str) -> bool:
    """Whether ``pattern`` can match more than itself."""
    return "*" in pattern or "?" in pattern


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of ``text`` matches ``pattern``, case-sensitively."""
    star = -1
    mark = p = t = 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, t
            p += 1
        elif p < len(pattern) and (pattern[p] == "?" or pattern[p] == text[t]):
            p += 1
            t += 1
        elif star >= 0:
            mark += 1
            p, t = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def any_matches(patterns: Iterable[str], text: str) -> bool:
    """Whether ``text`` matches one of ``patterns``."""
    return any(matches(pattern, text) for pattern in patterns)
