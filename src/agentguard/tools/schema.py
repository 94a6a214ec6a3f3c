"""What goes into a tool and what comes out: the nouns of validation and the JSON form of Python values.

What must stay true:

* ``effective`` is pure JSON and shares nothing mutable with the caller: what is decided on cannot change later.
* What the body receives is computed from the same values; nothing reaches it that policy did not see.
* Texts for a model name paths of the schema and expectations. They never repeat a value, a key or a text that
  the model or a third party wrote; those appear, shortened and escaped, in the texts for people only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple, NoReturn, Protocol

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from agentguard.canonical import MAX_DEPTH

MAX_INT = 10**4000
"""Integers beyond this cannot be written as text by Python's own JSON writer (limit 4,300 digits)."""

MAX_NODES = 200_000
"""Values with more parts than this are refused: shared references make them grow without bound."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with arguments.

    Attributes:
        path: Dotted path of the argument, ``""`` for the whole; keys that are not in the schema read ``*``.
        message: What is expected there. Free of values.
        detail: For people: what was found, shortened and escaped; may be empty.
    """

    path: str
    message: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ArgumentsInvalid(Exception):
    """Arguments do not satisfy the input schema. The gateway turns it into a refusal.

    Attributes:
        problems: What is wrong, at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """For the model: at most 500 characters, paths and expectations only."""
        return _fitting("The arguments are not valid: ", [str(problem) for problem in self.problems])

    @property
    def detail(self) -> str:
        """For people: every problem with what was found."""
        return "The arguments are not valid: " + "; ".join(
            f"{problem} ({problem.detail})" if problem.detail else str(problem) for problem in self.problems
        )


class OutputInvalid(Exception):
    """A result does not satisfy the output schema, or cannot be written as JSON.

    Attributes:
        message: For the model: free of the result's own words.
        detail: For people: what was found and what to do.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        self.message = message
        self.detail = detail or message
        super().__init__(self.detail)


class Validated(NamedTuple):
    """Arguments that satisfy the schema. Neither part may be changed.

    Attributes:
        kwargs: Python values for the body, by parameter name.
        effective: The same as JSON values, defaults filled in: what policy, approvals and audit see.
    """

    kwargs: dict[str, Any]
    effective: dict[str, Any]


class Output(NamedTuple):
    """A result that satisfies the schema: the value for the caller and its JSON text."""

    value: Any
    json: bytes


class Input(Protocol):
    """Checks arguments: compiled from a signature or from a JSON Schema."""

    schema: dict[str, Any]

    def validate(self, arguments: Mapping[str, Any]) -> Validated:
        """The arguments as they take effect, or ``ArgumentsInvalid``."""
        ...


class Result(Protocol):
    """Checks results: compiled from a return hint or from a JSON Schema."""

    schema: dict[str, Any] | None

    def check(self, value: Any) -> Output:
        """The result with its JSON text, or ``OutputInvalid``."""
        ...

    def revive(self, text: str | bytes) -> Any:
        """The value out of a stored JSON text, typed where the text still fits the type."""
        ...


def shown(value: Any, limit: int = 60) -> str:
    """A value for people: one line, at most ``limit`` characters, control characters escaped."""
    try:
        text = ascii(value)
    except Exception:  # a foreign __repr__, or an int too long to print
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``did you mean "x"?`` for the closest known name, or ``""``."""
    close = difflib.get_close_matches(name[:128], sorted(known), n=1)
    return f'did you mean "{close[0]}"?' if close else ""


def unknown_argument(name: str, known: Collection[str], path: str = "") -> Problem:
    """The problem of a key that the schema does not have; the key itself is shown to people only."""
    hint = did_you_mean(name, known)
    message = f"has an unknown argument ({hint})" if hint else "has an unknown argument"
    if not hint and known and len(known) <= 12:
        message += f" (known: {', '.join(sorted(known))})"
    return Problem(path, message if path else message.removeprefix("has "), f"found {shown(name)}")


def _fitting(head: str, parts: Sequence[str], limit: int = 500) -> str:
    text = head
    for index, part in enumerate(parts):
        piece = ("; " if index else "") + part
        if len(text) + len(piece) > limit - 20:
            if not index:
                return head + part[: limit - len(head) - 3] + "..."
            return f"{text}; and {len(parts) - index} more"
        text += piece
    return text


def dotted(path: Iterable[Any], known: Collection[str] | None = None) -> str:
    """A location as a dotted path; keys that are not ``known`` are written ``*``."""
    return ".".join(str(part) if isinstance(part, int) or known is None or part in known else "*" for part in path)


def property_names(schema: Any) -> frozenset[str]:
    """Every property name that a JSON Schema declares, at any depth."""
    names: set[str] = set()
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            properties = node.get("properties")
            if isinstance(properties, Mapping):
                names.update(properties)
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return frozenset(names)


# Messages of these kinds are made from the schema alone; all others may repeat what was found.
_FROM_SCHEMA = frozenset(
    [
        "bool_type",
        "bytes_type",
        "bytes_too_long",
        "bytes_too_short",
        "dataclass_type",
        "date_type",
        "datetime_type",
        "date_future",
        "date_past",
        "datetime_future",
        "datetime_past",
        "decimal_max_digits",
        "decimal_max_places",
        "decimal_type",
        "decimal_whole_digits",
        "dict_type",
        "enum",
        "finite_number",
        "float_type",
        "frozen_set_type",
        "greater_than",
        "greater_than_equal",
        "int_type",
        "is_instance_of",
        "less_than",
        "less_than_equal",
        "list_type",
        "literal_error",
        "mapping_type",
        "missing",
        "model_attributes_type",
        "model_type",
        "multiple_of",
        "none_required",
        "set_type",
        "string_pattern_mismatch",
        "string_too_long",
        "string_too_short",
        "string_type",
        "string_unicode",
        "time_delta_type",
        "time_type",
        "timezone_aware",
        "timezone_naive",
        "too_long",
        "too_short",
        "tuple_type",
        "url_scheme",
        "url_too_long",
        "url_type",
        "uuid_type",
        "uuid_version",
    ]
)


def problems_of(error: ValidationError, known: Collection[str], top: Collection[str]) -> list[Problem]:
    """The problems in a pydantic error.

    Args:
        error: What pydantic raised.
        known: Names that may appear in paths.
        top: Names of the arguments, for suggestions.
    """
    found: list[Problem] = []
    for item in error.errors(include_url=False, include_context=False):
        location, kind = item["loc"], item["type"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            parent = location[:-1]
            found.append(unknown_argument(str(location[-1]), known if parent else top, dotted(parent, known)))
            continue
        if kind == "missing":
            message = "is required"
        elif kind in _FROM_SCHEMA:
            message = item["msg"].replace("Input should ", "must ", 1).replace("a valid dictionary", "an object")
            if len(message) > 200:  # a bound of thousands of digits, or a long list of choices
                message = f"{message[:200]}..."
        elif kind in ("json_invalid", "recursion_loop"):
            message = "cannot be read"
        else:
            message = "is not a valid value"
        detail = "" if kind == "missing" else f"found {shown(item['input'])}"
        found.append(Problem(dotted(location, known), message, detail))
    return found


class Plain:
    """Turns Python values into pure JSON values: a deep copy that shares nothing mutable.

    ``instances`` permits values that are not JSON themselves but have a JSON form (dates, enums, models, sets);
    their places are remembered in ``converted``, because a text that was a date a moment ago must not satisfy
    a parameter that wants text.
    """

    __slots__ = ("_instances", "_known", "_nodes", "converted")

    def __init__(self, *, instances: bool, known: Collection[str] = ()) -> None:
        self._instances = instances
        self._known = known
        self._nodes = 0
        self.converted: list[tuple[tuple[str | int, ...], Any]] = []

    def copy(self, value: Any, path: tuple[str | int, ...] = ()) -> Any:
        """The JSON form of a value.

        Raises:
            ArgumentsInvalid: NaN, infinity, a lone surrogate, a key that is no text, a foreign type, nested
                deeper than 64 levels, or too many parts.
        """
        self._nodes += 1
        if len(path) > MAX_DEPTH:
            self._refuse(path[:1], f"is nested deeper than {MAX_DEPTH} levels")
        if self._nodes > MAX_NODES:
            self._refuse(path[:1], f"has more than {MAX_NODES} parts")
        kind = type(value)
        if kind is str:
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    self._refuse(path, "must be valid Unicode text")
            return value
        if value is None or kind is bool:
            return value
        if kind is int:
            if not -MAX_INT <= value <= MAX_INT:
                self._refuse(path, "must be a smaller integer")
            return value
        if kind is float:
            if not math.isfinite(value):
                self._refuse(path, "must be a finite number")
            return value
        if isinstance(value, Mapping):
            copied = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    self._refuse(path, "must have keys that are text")
                name = self.copy(str.__str__(key), path)
                copied[name] = self.copy(item, (*path, name))
            return copied
        if isinstance(value, (list, tuple)):
            return [self.copy(item, (*path, index)) for index, item in enumerate(value)]
        return self._instance(value, path)

    def _instance(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, Enum):
            if not isinstance(value, (str, int, float)):
                self.converted.append((path, value))
            return self.copy(value.value, path)
        for base in (str, int, float):  # subclasses as their plain value
            if isinstance(value, base):
                return self.copy(str.__str__(value) if isinstance(value, str) else base(value), path)
        if not self._instances or callable(value) or isinstance(value, Iterator):
            self._refuse(path, "must be a JSON value", f"found {type(value).__name__}")
        try:
            form = str(value) if isinstance(value, PurePath) else to_jsonable_python(value, by_alias=True)
        except Exception as error:  # the value's own serializer may raise anything
            raise ArgumentsInvalid(
                [
                    Problem(
                        dotted(path[:1], self._known),
                        "must be a value with a JSON form",
                        f"found {type(value).__name__}",
                    )
                ]
            ) from error
        self.converted.append((path, value))
        return self.copy(form, path)

    def _refuse(self, path: tuple[str | int, ...], message: str, detail: str = "") -> NoReturn:
        # only the argument's name may be shown: what lies deeper can be a key that the model made up
        raise ArgumentsInvalid([Problem(dotted(path[:1], self._known), message, detail or f"at {shown(dotted(path))}")])


def at(value: Any, path: Sequence[Any]) -> Any:
    """The part of a validated value at a path through mappings, lists and attributes; ``None`` when it is gone."""
    for step in path:
        held: Any = value
        try:
            value = held[step] if isinstance(held, (dict, list, tuple)) else getattr(held, str(step))
        except (LookupError, AttributeError, TypeError):
            return None
    return value


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Every subschema-like mapping in a JSON Schema or core schema, the outermost first."""
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, (list, tuple)):
            stack.extend(node)
