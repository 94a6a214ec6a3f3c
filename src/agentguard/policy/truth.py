"""Three truth values and the JSON values they are about.

True, false, and ``None`` for unknown, joined by Kleene's logic: false beats unknown in "and", true beats unknown in
"or", and the opposite of unknown is unknown. Equality is that of JSON Schema: ``1`` equals ``1.0``; ``True``, ``1``
and ``"1"`` are three different values. What must stay true: nothing here says true or false about a value that is no
JSON value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

Truth: TypeAlias = bool | None
"""``True``, ``False`` or ``None`` for unknown."""

Condition: TypeAlias = Callable[[Any], Truth]
"""Judges one value. :data:`ABSENT` stands for an argument that is not there."""


class _Absent:
    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""The value of an argument that was not given."""


def both(values: Iterable[Truth]) -> Truth:
    """Kleene's "and" over all values; true for none."""
    result: Truth = True
    for value in values:
        if value is False:
            return False
        if value is None:
            result = None
    return result


def either(values: Iterable[Truth]) -> Truth:
    """Kleene's "or" over all values; false for none."""
    result: Truth = False
    for value in values:
        if value is True:
            return True
        if value is None:
            result = None
    return result


def opposite(value: Truth) -> Truth:
    """Kleene's "not"."""
    return None if value is None else not value


def counted(values: Iterable[Truth], least: int, most: int | None) -> Truth:
    """Whether the number of true values is between ``least`` and ``most``."""
    certain = possible = 0
    for value in values:
        certain += value is True
        possible += value is not False
    if possible < least or (most is not None and certain > most):
        return False
    return True if certain >= least and (most is None or possible <= most) else None


# -- values -------------------------------------------------------------------------------------------------------------


def kind(value: Any) -> str | None:
    """JSON type of a value: ``null boolean number string array object``, or ``None`` for anything else.

    NaN and the infinities are no JSON numbers.
    """
    cls = type(value)
    if cls is str:
        return "string"
    if cls is bool:
        return "boolean"
    if cls is int:
        return "number"
    if cls is float:
        return "number" if value - value == 0 else None
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, (list, tuple)):
        return "array"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number" if value - value == 0 else None
    return None


def same(left: Any, right: Any) -> Truth:
    """Equality of JSON Schema; unknown when one side is no JSON value."""
    a, b = kind(left), kind(right)
    if a is None or b is None:
        return None
    if a != b:
        return False
    if a == "array":
        return False if len(left) != len(right) else both(map(same, left, right))
    if a == "object":
        if left.keys() != right.keys():
            return False
        return both(same(item, right[key]) for key, item in left.items())
    return bool(left == right)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no truth value."""
    return kind(value) == "number"


# -- reaching values ----------------------------------------------------------------------------------------------------


class WrongShape(Exception):
    """A path leads through something that is neither a list nor an object."""


def reach(value: Any, path: Sequence[str], nullable: frozenset[int] = frozenset()) -> list[Any]:
    """Values at the end of a path; one of them unless the path contains ``*``.

    Args:
        value: The arguments.
        path: Keys of objects, indices of lists, ``*`` for every element of a list or object.
        nullable: Depths at which ``null`` stands for "not given".

    Returns:
        The values; :data:`ABSENT` for each that is not there.

    Raises:
        WrongShape: The path leads through a scalar.
    """
    values = [value]
    for depth, step in enumerate(path):
        found: list[Any] = []
        for item in values:
            if item is ABSENT or (item is None and depth in nullable):
                found.append(ABSENT)
            elif isinstance(item, Mapping):
                if step == "*":
                    found.extend(item.values())
                else:
                    found.append(item.get(step, ABSENT))
            elif isinstance(item, (list, tuple)):
                if step == "*":
                    found.extend(item)
                elif step.isascii() and step.isdigit() and len(step) < 10:
                    found.append(item[int(step)] if int(step) < len(item) else ABSENT)
                else:
                    raise WrongShape
            else:
                raise WrongShape
        values = found
    return values
