"""Finding the rules that may match without asking each of them.

Rules of one tool that put a simple condition on the same argument share one *guard*: a look at the argument's value
that names the rules whose condition may hold. Texts go to a table of words, a table of prefixes and one merged
pattern; numbers to sorted intervals. What is absent or of another type names every rule of the argument, because
deny and approval rules match on unknown.

What must stay true: a guard may name too many rules, never too few.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from agentguard.policy.matchers import NotLinear, literal, pattern_search
from agentguard.policy.planning import Candidate, Guard
from agentguard.policy.truth import WrongShape, kind, reach

Conditions: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]
"""Dotted paths and the fragments that a rule puts on them."""

_RANGE = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_CELLS = 100_000
"""Most entries of an interval table; rules that overlap more are judged one by one."""

_LENGTHS = 4
"""Most different lengths of prefixes that are looked up one after the other."""

# Merging is textual, so only patterns without flags, comments or other extensions take part.
_MERGEABLE = re.compile(r"(?:[^(\\]|\\.|\((?!\?)|\(\?:)*", re.DOTALL)


@dataclass(slots=True)
class _Bucket:
    """The simple conditions on one argument."""

    words: dict[str, list[Candidate]] = field(default_factory=dict)
    prefixes: dict[str, list[Candidate]] = field(default_factory=dict)
    patterns: list[tuple[str, Candidate]] = field(default_factory=list)
    ranges: list[tuple[float, bool, float, bool, Candidate]] = field(default_factory=list)
    texts: list[Candidate] = field(default_factory=list)
    numbers: list[Candidate] = field(default_factory=list)


def fold(rules: Sequence[tuple[Candidate, Conditions]]) -> tuple[tuple[Guard, ...], tuple[Candidate, ...]]:
    """Split rules into guards and those that have to be judged one by one.

    Args:
        rules: Compiled rules that match on unknown, each with its conditions on arguments.

    Returns:
        Guards, and the rest.
    """
    buckets: dict[str, _Bucket] = {}
    rest: list[Candidate] = []
    for rule, conditions in rules:
        best = min(
            ((rank, path, fragment) for path, fragment in conditions if (rank := _rank(path, fragment)) is not None),
            key=lambda choice: choice[0],
            default=None,
        )
        if best is None:
            rest.append(rule)
        else:
            _put(buckets.setdefault(best[1], _Bucket()), best[2], rule)
    guards: list[Guard] = []
    for path, bucket in buckets.items():
        guard = _guard(path, bucket)
        if guard is None:
            rest += [*bucket.texts, *bucket.numbers]
        else:
            guards.append(guard)
    return tuple(guards), tuple(sorted(rest, key=lambda rule: rule.number))


def _plain(fragment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fragment.items() if key != "optional"}


def _rank(path: str, fragment: Mapping[str, Any]) -> int | None:
    """How selective a condition is likely to be, 0 first; ``None`` when it cannot be folded."""
    if "*" in path.split("."):
        return None
    f = _plain(fragment)
    keys = set(f)
    if keys in ({"const"}, {"enum"}):
        kinds = {kind(value) for value in (f["enum"] if "enum" in f else [f["const"]])}
        return 0 if kinds in ({"string"}, {"number"}) else None
    if keys == {"pattern"}:
        return 1
    return 2 if keys and keys <= _RANGE else None


def _put(bucket: _Bucket, fragment: Mapping[str, Any], rule: Candidate) -> None:
    f = _plain(fragment)
    options = f.get("enum", [f["const"]] if "const" in f else [])
    if "pattern" in f:
        bucket.texts.append(rule)
        plain = literal(f["pattern"])
        if plain is None:
            bucket.patterns.append((f["pattern"], rule))
        else:
            (bucket.words if plain[1] else bucket.prefixes).setdefault(plain[0], []).append(rule)
    elif options and kind(options[0]) == "string":
        bucket.texts.append(rule)
        for word in dict.fromkeys(options):
            bucket.words.setdefault(word, []).append(rule)
    else:
        bucket.numbers.append(rule)
        bucket.ranges.extend((value, False, value, False, rule) for value in options)
        if not options:
            low = max(f.get("minimum", -math.inf), f.get("exclusiveMinimum", -math.inf))
            high = min(f.get("maximum", math.inf), f.get("exclusiveMaximum", math.inf))
            bucket.ranges.append((low, f.get("exclusiveMinimum") == low, high, f.get("exclusiveMaximum") == high, rule))


# -- guards ------------------------------------------------------------------------------------------------------------

_Look: TypeAlias = Callable[[Any], Sequence[Candidate]]
_NOTHING: tuple[Candidate, ...] = ()


def _guard(path: str, bucket: _Bucket) -> Guard | None:
    """The guard of one argument, or ``None`` when its rules are better judged one by one."""
    everything = tuple(sorted({*bucket.texts, *bucket.numbers}, key=lambda rule: rule.number))
    on_text = _texts(bucket) if bucket.texts else None
    on_number = _numbers(bucket.ranges) if bucket.numbers else None
    if bucket.numbers and on_number is None:
        return None
    if "." in path:
        return _nested(path.split("."), bucket, on_text, on_number, everything)
    if on_number is None and on_text is not None:
        if not bucket.prefixes and not bucket.patterns:
            return _only_words(path, {word: tuple(rules) for word, rules in bucket.words.items()}, everything)
        if len({len(prefix) for prefix in bucket.prefixes}) == 1 and not bucket.words and not bucket.patterns:
            return _only_prefixes(path, {prefix: tuple(rules) for prefix, rules in bucket.prefixes.items()}, everything)
        text = on_text

        def only_texts(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
            value = arguments.get(path)
            return text(value) if type(value) is str else everything

        return only_texts
    if on_text is None and on_number is not None:
        return _only_numbers(path, on_number, everything)
    judge = _mixed(bucket, on_text, on_number, everything)

    def mixed(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
        return judge(arguments.get(path))

    return mixed


def _only_words(path: str, table: Mapping[str, tuple[Candidate, ...]], everything: Sequence[Candidate]) -> Guard:
    def look(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
        value = arguments.get(path)
        return table.get(value, _NOTHING) if type(value) is str else everything

    return look


def _only_numbers(path: str, numbers: _Numbers, everything: Sequence[Candidate]) -> Guard:
    points, table, size = numbers.points, numbers.table, len(numbers.points)

    def look(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
        value = arguments.get(path)
        if type(value) is int:  # written out: most numbers are
            at = bisect_left(points, value)
            return table[2 * at + 1] if at < size and points[at] == value else table[2 * at]
        return numbers(value) if type(value) is float else everything

    return look


def _only_prefixes(path: str, table: Mapping[str, tuple[Candidate, ...]], everything: Sequence[Candidate]) -> Guard:
    length = len(next(iter(table)))

    def look(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
        value = arguments.get(path)
        return table.get(value[:length], _NOTHING) if type(value) is str else everything

    return look


def _mixed(bucket: _Bucket, on_text: _Look | None, on_number: _Look | None, everything: Sequence[Candidate]) -> _Look:
    numbers, texts = tuple(bucket.numbers), tuple(bucket.texts)

    def judge(value: Any) -> Sequence[Candidate]:
        if type(value) is str:
            return [*on_text(value), *numbers] if on_text else numbers
        if type(value) is int or type(value) is float:
            return [*on_number(value), *texts] if on_number else texts
        return everything

    return judge


def _nested(
    steps: list[str],
    bucket: _Bucket,
    on_text: _Look | None,
    on_number: _Look | None,
    everything: Sequence[Candidate],
) -> Guard:
    judge = _mixed(bucket, on_text, on_number, everything)

    def look(arguments: Mapping[str, Any]) -> Sequence[Candidate]:
        try:
            return judge(reach(arguments, steps)[0])
        except WrongShape:
            return everything

    return look


def _texts(bucket: _Bucket) -> _Look:
    """Look a text up among words, prefixes and patterns."""
    words = {word: tuple(rules) for word, rules in bucket.words.items()}
    prefixes: dict[int, dict[str, tuple[Candidate, ...]]] = {}
    patterns = list(bucket.patterns)
    if len({len(prefix) for prefix in bucket.prefixes}) <= _LENGTHS:
        for prefix, rules in bucket.prefixes.items():
            prefixes.setdefault(len(prefix), {})[prefix] = tuple(rules)
    else:
        patterns += [(f"^{re.escape(p)}", rule) for p, rules in bucket.prefixes.items() for rule in rules]
    tables = tuple(sorted(prefixes.items()))
    search = _merged(patterns)
    if search is not None and not words and not tables:
        return search
    if len(tables) == 1 and not words and search is None:
        length, table = tables[0]
        return lambda value: table.get(value[:length], _NOTHING)

    def look(value: str) -> Sequence[Candidate]:
        found: Sequence[Candidate] = words.get(value, _NOTHING)
        for length, table in tables:
            hit = table.get(value[:length])
            if hit is not None:
                found = (*found, *hit)
        if search is not None:
            found = (*found, *search(value))
        return found

    return look


_GROUP = 4


def _merged(patterns: Sequence[tuple[str, Candidate]]) -> Callable[[str], Sequence[Candidate]] | None:
    """A look at a text that names the rules whose pattern it contains, with one search for most texts.

    One merged pattern says whether any of them is found; only then smaller merged patterns say which.
    """
    if not patterns:
        return None
    alike: dict[str, list[Candidate]] = {}
    apart: dict[str, list[Candidate]] = {}
    for pattern, rule in patterns:
        (alike if _MERGEABLE.fullmatch(pattern) else apart).setdefault(pattern, []).append(rule)
    searches = [*_tree(list(alike.items())), *(_leaf(pattern, rules) for pattern, rules in apart.items())]
    if len(searches) == 1:
        first, top, branches = searches[0]

        def look(value: str) -> Sequence[Candidate]:
            try:
                if not first(value):
                    return _NOTHING
            except Exception:  # text that no engine takes; the rules' own tests make it unknown
                return top
            return _descend(branches, value) if branches else top

        return look
    return lambda value: _descend(searches, value)


class _Search(NamedTuple):
    """A search, the rules that one of its finds may concern, and narrower searches that say which."""

    found: Callable[[str], bool]
    rules: tuple[Candidate, ...]
    branches: Sequence[Any] = ()


def _descend(searches: Sequence[_Search], value: str) -> Sequence[Candidate]:
    hits: list[Candidate] = []
    for found, rules, branches in searches:
        try:
            if not found(value):
                continue
        except Exception:  # text that no engine takes; the rules' own tests make it unknown
            hits += rules
            continue
        hits += _descend(branches, value) if branches else rules
    return hits


def _leaf(pattern: str, rules: Sequence[Candidate]) -> _Search:
    return _Search(pattern_search(pattern), tuple(rules))


def _tree(patterns: Sequence[tuple[str, list[Candidate]]]) -> list[_Search]:
    """Searches that together find what any of the patterns finds."""
    if len(patterns) <= 1:
        return [_leaf(pattern, rules) for pattern, rules in patterns]
    everything = tuple(rule for _, rules in patterns for rule in rules)
    branches: list[_Search] = []
    if len(patterns) > _GROUP:
        size = -(-len(patterns) // _GROUP)
        groups = [patterns[start : start + size] for start in range(0, len(patterns), size)]
        branches = [branch for group in groups for branch in _tree(group)]
    try:
        together = pattern_search("|".join(f"(?:{pattern})" for pattern, _ in patterns))
    except NotLinear:  # each fits, all together do not
        return branches or [_leaf(pattern, rules) for pattern, rules in patterns]
    return [_Search(together, everything, tuple(branches))]


def _numbers(ranges: Sequence[tuple[float, bool, float, bool, Candidate]]) -> _Numbers | None:
    """Look a number up among intervals, or ``None`` when they overlap too much for a table."""
    points = sorted({bound for low, _, high, _, _ in ranges for bound in (low, high) if math.isfinite(bound)})
    cells: list[list[Candidate]] = [[] for _ in range(2 * len(points) + 1)]
    total = 0
    for low, low_open, high, high_open, rule in ranges:
        first = 0 if low == -math.inf else 2 * bisect_left(points, low) + (2 if low_open else 1)
        last = len(cells) - 1 if high == math.inf else 2 * bisect_left(points, high) + (0 if high_open else 1)
        total += max(0, last - first + 1)
        if total > _CELLS:
            return None
        for cell in cells[first : last + 1]:
            if not cell or cell[-1] is not rule:
                cell.append(rule)
    everything = tuple(dict.fromkeys(rule for *_, rule in ranges))
    return _Numbers(tuple(points), tuple(tuple(cell) for cell in cells), everything)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Rules by interval: ``table[2 * i]`` is for the open one before ``points[i]``, ``table[2 * i + 1]`` for the point."""

    points: tuple[float, ...]
    table: tuple[tuple[Candidate, ...], ...]
    everything: tuple[Candidate, ...]

    def __call__(self, value: float) -> Sequence[Candidate]:
        """The rules whose interval holds ``value``."""
        points = self.points
        if value - value != 0:  # NaN and the infinities: no interval says anything about them
            return self.everything
        at = bisect_left(points, value)
        return self.table[2 * at + 1] if at < len(points) and points[at] == value else self.table[2 * at]
