"""Which patterns Python's own ``re`` matches in linear time, decided from their structure.

Only for platforms without jsonschema-rs, whose engine is linear for every pattern. What must stay true: a
pattern that passes has at most one unbounded repeat, of single characters, behind an anchor, so that there is
nothing to backtrack into but the length of that one repeat. Everything else is refused, also much that would
be harmless.
"""

from __future__ import annotations

import re

# The parser moved to the private name in Python 3.11; there is no public one.
from re import _constants as _c  # type: ignore[attr-defined]
from re import _parser as _p  # type: ignore[attr-defined]
from typing import Any

MAX_REPEAT = 256
"""Bounded repeats may multiply to this much."""

_SINGLE = {_c.LITERAL, _c.NOT_LITERAL, _c.ANY, _c.IN}


def check_pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern that is linear by construction, with the meaning it has in JSON Schema.

    ``$`` matches at the very end only and ``\d``, ``\w`` are ASCII, as in ECMA-262.

    Raises:
        ValueError: It is no pattern, or not provably linear.
    """
    try:
        parsed = _p.parse(_ended(text), re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a pattern: {error}") from error
    items = list(parsed)
    anchored = bool(items) and items[0] in ((_c.AT, _c.AT_BEGINNING), (_c.AT, _c.AT_BEGINNING_STRING))
    unbounded = _count(items, 1)
    if unbounded > 1 or (unbounded and not anchored):
        raise ValueError(
            "cannot be shown to run in linear time without jsonschema-rs; anchor it with ^ and use at most one "
            "unbounded repeat, or install jsonschema-rs"
        )
    return re.compile(_ended(text), re.ASCII)


def _ended(text: str) -> str:
    r"""The pattern with ``$`` (before a final newline too, in Python) as ``\Z`` (the very end)."""
    out: list[str] = []
    escaped = inside = False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == "[":
            inside = True
        elif letter == "]":
            inside = False
        elif letter == "$" and not inside:
            out.append("\\Z")
            continue
        out.append(letter)
    return "".join(out)


def _count(items: Any, product: int) -> int:
    """How many unbounded repeats of single characters there are; anything that may backtrack is refused."""
    unbounded = 0
    for kind, value in items:
        if kind in _SINGLE or kind is _c.AT:
            continue
        if kind is _c.SUBPATTERN:
            unbounded += _count(value[-1], product)
        elif kind is _c.BRANCH:
            unbounded += sum(_count(branch, product) for branch in value[1])
        elif kind in (_c.MAX_REPEAT, _c.MIN_REPEAT):
            _, most, body = value
            if most is _c.MAXREPEAT or most > MAX_REPEAT:
                if product > 1 or len(body) != 1 or body[0][0] not in _SINGLE:
                    raise ValueError("repeats something that repeats or is longer than one character without bound")
                unbounded += 1
            elif product * max(most, 1) > MAX_REPEAT:
                raise ValueError(f"its bounded repeats multiply to more than {MAX_REPEAT}")
            else:
                unbounded += _count(body, product * max(most, 1))
        else:
            raise ValueError(f"{str(kind).lower()} is not linear")
    return unbounded
