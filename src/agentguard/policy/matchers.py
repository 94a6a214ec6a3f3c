"""Conditions on values: a schema fragment becomes a function that answers true, false or unknown (``None``).

What must stay true: a function built here never raises for any value and never says true or false about a value it
cannot judge. Wrong type, absence, NaN and anything odd are unknown; deny and approval rules match on unknown, allow
rules do not, so that doubt always narrows. Logic is Kleene's: false beats unknown in "and", true beats unknown in
"or", and the opposite of unknown is unknown. Nothing here reads the world; the one look at the file system
(``within``) comes in as a function.

Equality is that of JSON Schema: ``1`` equals ``1.0``; ``True``, ``1`` and ``"1"`` are three different values.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentguard.canonical import dumps
from agentguard.policy.recognising import PathResolver, command, email_domain, url_host, url_scheme, within
from agentguard.policy.truth import ABSENT, Condition, Truth, both, counted, either, is_number, kind, opposite, same

REGEX_SIZE = 1 << 17
"""Upper bound for the compiled size of one pattern in bytes."""


class NotLinear(ValueError):
    """The pattern cannot be matched in linear time, or not at all."""


# -- plain keywords ----------------------------------------------------------------------------------------------------


def _one_of(options: Sequence[Any]) -> Condition:
    kinds = frozenset(map(kind, options))
    if kinds == {"string"}:
        words = frozenset(options)

        def word(value: Any) -> Truth:
            if type(value) is str:
                return value in words
            # null is a value that is known to differ; any other type is a sign that something is not as written.
            return False if value is None else (value in words) if kind(value) == "string" else None

        return word

    def judge(value: Any) -> Truth:
        found = kind(value)
        if found is None:
            return None
        if found not in kinds:
            return False if value is None else None
        return either(same(value, option) for option in options)

    return judge


def _bound(keyword: str, limit: float) -> Condition:
    def judge(value: Any) -> Truth:
        if type(value) is not int and not is_number(value):
            return None
        if keyword == "minimum":
            return bool(value >= limit)
        if keyword == "exclusiveMaximum":
            return bool(value < limit)
        return bool(value > limit)

    return judge


def _at_most(limit: float) -> Condition:
    def judge(value: Any) -> Truth:
        if type(value) is int or is_number(value):
            return bool(value <= limit)
        return None

    return judge


def _multiple_of(divisor: float) -> Condition:
    from fractions import Fraction

    unit = Fraction(repr(divisor))

    def judge(value: Any) -> Truth:
        if not is_number(value):
            return None
        return (Fraction(value) if isinstance(value, int) else Fraction(repr(float(value)))) % unit == 0

    return judge


def _length(wanted: str, limit: int, least: bool) -> Condition:
    def judge(value: Any) -> Truth:
        if kind(value) != wanted:
            return None
        return len(value) >= limit if least else len(value) <= limit

    return judge


def _types(names: Sequence[str]) -> Condition:
    wanted = frozenset(names)

    def judge(value: Any) -> Truth:
        found = kind(value)
        if found is None:
            return None
        if found == "number":
            return "number" in wanted or ("integer" in wanted and value == int(value))
        return found in wanted

    return judge


@functools.lru_cache(maxsize=4096)
def pattern_search(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern for searching in linear time (the Rust ``regex`` engine, ECMA-262 classes).

    Raises:
        NotLinear: The pattern needs backtracking (look-around, back-references), is malformed or too large, or the
            engine is not installed.
    """
    try:
        import jsonschema_rs
    except ImportError:  # no wheel for this platform: a pattern nobody can match safely is not loaded
        raise NotLinear("jsonschema-rs is not installed, so patterns cannot be matched in linear time") from None
    options = jsonschema_rs.RegexOptions(size_limit=REGEX_SIZE)
    try:
        search: Callable[[str], bool] = jsonschema_rs.Draft202012Validator(
            {"pattern": pattern}, pattern_options=options
        ).is_valid
    except Exception:
        raise NotLinear(
            "it is malformed, too large, or uses look-around or back-references, which need backtracking"
        ) from None
    return search


_LITERAL = re.compile(r"\^((?:[A-Za-z0-9_/:@ ,=;%&~!<>'\"-]|\\[./$^*+?()\[\]{}|\\-])*)(\$?)")


def literal(pattern: str) -> tuple[str, bool] | None:
    """The text that an anchored pattern without metacharacters stands for, and whether it is the whole text.

    ``None`` for every other pattern.
    """
    found = _LITERAL.fullmatch(pattern)
    return (re.sub(r"\\(.)", r"\1", found[1]), bool(found[2])) if found else None


def _pattern(pattern: str) -> Condition:
    plain = literal(pattern)
    if plain is not None:
        text, whole = plain

        def compare(value: Any) -> Truth:
            if kind(value) != "string":
                return None
            return bool(value == text) if whole else bool(value.startswith(text))

        return compare
    search = pattern_search(pattern)

    def judge(value: Any) -> Truth:
        return search(value) if type(value) is str else search(str.__str__(value)) if kind(value) == "string" else None

    return judge


# -- structure ---------------------------------------------------------------------------------------------------------


def _items(prefix: Sequence[Condition], rest: Condition | bool | None) -> Condition:
    def judge(value: Any) -> Truth:
        if kind(value) != "array":
            return None
        parts = [condition(item) for condition, item in zip(prefix, value, strict=False)]
        tail = value[len(prefix) :]
        if rest is False:
            parts.append(not tail)
        elif callable(rest):
            parts.extend(map(rest, tail))
        return both(parts)

    return judge


def _contains(condition: Condition, least: int, most: int | None) -> Condition:
    def judge(value: Any) -> Truth:
        return counted(map(condition, value), least, most) if kind(value) == "array" else None

    return judge


def _unique(wanted: bool) -> Condition:
    def judge(value: Any) -> Truth:
        if kind(value) != "array":
            return None
        return not wanted or len({dumps(item) for item in value}) == len(value)

    return judge


def _properties(
    named: Mapping[str, Condition],
    patterns: Sequence[tuple[Callable[[str], bool], Condition]],
    rest: Condition | bool | None,
) -> Condition:
    def judge(value: Any) -> Truth:
        if kind(value) != "object":
            return None
        parts = [condition(value.get(name, ABSENT)) for name, condition in named.items()]
        for key, item in value.items():
            known = key in named
            for search, condition in patterns:
                if search(key):
                    known = True
                    parts.append(condition(item))
            if not known:
                if rest is False:
                    return False
                if callable(rest):
                    parts.append(rest(item))
        return both(parts)

    return judge


def _required(names: Sequence[str]) -> Condition:
    def judge(value: Any) -> Truth:
        return all(name in value for name in names) if kind(value) == "object" else None

    return judge


def _names(condition: Condition) -> Condition:
    return lambda value: both(map(condition, value)) if kind(value) == "object" else None


def _dependent(needs: Mapping[str, Sequence[str]]) -> Condition:
    def judge(value: Any) -> Truth:
        if kind(value) != "object":
            return None
        return all(other in value for name, others in needs.items() if name in value for other in others)

    return judge


def _conditional(test: Condition, then: Condition | None, otherwise: Condition | None) -> Condition:
    def judge(value: Any) -> Truth:
        truth = test(value)
        if truth is None:
            return None
        branch = then if truth else otherwise
        return True if branch is None else branch(value)

    return judge


# -- fragments ---------------------------------------------------------------------------------------------------------


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = value["allow"]
    return [value] if isinstance(value, str) else list(value)


def _schema(fragment: Any, resolve: PathResolver) -> Condition:
    if isinstance(fragment, bool):
        return lambda value: fragment  # noqa: ARG005 - the boolean schemas judge without looking
    return build(fragment, resolve)


def _maybe(fragment: Any, resolve: PathResolver) -> Condition | bool | None:
    return fragment if fragment is None or isinstance(fragment, bool) else build(fragment, resolve)


_LENGTHS = {
    "minLength": ("string", True),
    "maxLength": ("string", False),
    "minItems": ("array", True),
    "maxItems": ("array", False),
    "minProperties": ("object", True),
    "maxProperties": ("object", False),
}


def parts_of(fragment: Mapping[str, Any], resolve: PathResolver) -> list[Condition]:
    """One condition per keyword or group of keywords that belong together."""
    f = fragment
    parts: list[Condition] = []
    for keyword, value in f.items():
        if keyword == "const":
            parts.append(_one_of([value]))
        elif keyword == "enum":
            parts.append(_one_of(value))
        elif keyword == "maximum":
            parts.append(_at_most(value))
        elif keyword in ("minimum", "exclusiveMinimum", "exclusiveMaximum"):
            parts.append(_bound(keyword, value))
        elif keyword == "multipleOf":
            parts.append(_multiple_of(value))
        elif keyword in _LENGTHS:
            wanted, least = _LENGTHS[keyword]
            parts.append(_length(wanted, value, least))
        elif keyword == "type":
            parts.append(_types([value] if isinstance(value, str) else value))
        elif keyword == "pattern":
            parts.append(_pattern(value))
        elif keyword == "uniqueItems":
            parts.append(_safe(_unique(value)))
        elif keyword == "required":
            parts.append(_required(value))
        elif keyword == "dependentRequired":
            parts.append(_dependent(value))
        elif keyword == "propertyNames":
            parts.append(_names(_schema(value, resolve)))
        elif keyword == "not":
            parts.append(_negated(_schema(value, resolve)))
        elif keyword == "allOf":
            parts.extend(_schema(item, resolve) for item in value)
        elif keyword == "anyOf":
            parts.append(_any([_schema(item, resolve) for item in value]))
        elif keyword == "oneOf":
            parts.append(_exactly_one([_schema(item, resolve) for item in value]))
        elif keyword == "within":
            parts.append(_safe(within(_texts(value), resolve)))
        elif keyword == "host":
            parts.append(url_host(_texts(value)))
        elif keyword == "scheme":
            parts.append(url_scheme(_texts(value)))
        elif keyword == "email_domain":
            parts.append(email_domain(_texts(value)))
        elif keyword == "command":
            parts.append(_safe(command(_texts(value))))
    if "items" in f or "prefixItems" in f:
        parts.append(_items([_schema(s, resolve) for s in f.get("prefixItems", ())], _maybe(f.get("items"), resolve)))
    if "contains" in f:
        parts.append(_contains(_schema(f["contains"], resolve), f.get("minContains", 1), f.get("maxContains")))
    if "properties" in f or "patternProperties" in f or "additionalProperties" in f:
        parts.append(
            _properties(
                {name: _schema(s, resolve) for name, s in f.get("properties", {}).items()},
                [(pattern_search(p), _schema(s, resolve)) for p, s in f.get("patternProperties", {}).items()],
                _maybe(f.get("additionalProperties"), resolve),
            )
        )
    if "if" in f:
        branches = [build(f[name], resolve) if name in f else None for name in ("then", "else")]
        parts.append(_conditional(build(f["if"], resolve), branches[0], branches[1]))
    return parts


def _negated(condition: Condition) -> Condition:
    return lambda value: opposite(condition(value))


def _any(conditions: Sequence[Condition]) -> Condition:
    return lambda value: either(condition(value) for condition in conditions)


def _exactly_one(conditions: Sequence[Condition]) -> Condition:
    return lambda value: counted((condition(value) for condition in conditions), 1, 1)


def build(fragment: Mapping[str, Any], resolve: PathResolver, *, null_is_absent: bool = False) -> Condition:
    """Compile a schema fragment that :mod:`~agentguard.policy.loading` accepted.

    Args:
        fragment: Keywords of JSON Schema 2020-12 and the matchers of this module.
        resolve: Resolves symbolic links for ``within``.
        null_is_absent: ``null`` is what the tool fills in for an argument that is not given, so that ``optional``
            covers it.

    Raises:
        NotLinear: A pattern cannot be compiled.
    """
    optional = fragment.get("optional", False)
    parts = parts_of(fragment, resolve)
    if len(parts) == 1 and not optional:
        return parts[0]

    def judge(value: Any) -> Truth:
        if optional and (value is ABSENT or (value is None and null_is_absent)):
            return True
        result: Truth = True
        for part in parts:
            truth = part(value)
            if truth is False:
                return False
            if truth is None:
                result = None
        return result

    return judge


def _safe(condition: Condition) -> Condition:
    def judge(value: Any) -> Truth:
        try:
            return condition(value)
        except Exception:  # an error in a condition is the third truth value, whatever the error
            return None

    return judge
