"""Rules against the registry: does every rule talk about tools and arguments that exist, in terms that fit?

A rule that names something unknown would never match, which is how a misspelt deny becomes a silent allow; here it
is an error with its place in the file. What must stay true: a finding of severity ``error`` keeps the rulebook from
being compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeGuard

from agentguard.documents import did_you_mean
from agentguard.domain.decisions import Finding
from agentguard.domain.plans import ToolSpec
from agentguard.globbing import is_glob, matches
from agentguard.policy.rules import Rule, Selector
from agentguard.policy.schemas import Schema, alternatives, step, types_of
from agentguard.policy.truth import kind, same


class Registered(Protocol):
    """A registered tool, as far as policies care."""

    @property
    def spec(self) -> ToolSpec:
        """What is known of the tool."""
        ...


class Registry(Protocol):
    """The registered tools, as far as policies care."""

    def __iter__(self) -> Iterator[Registered]:
        """Every tool, in any order."""
        ...

    def __contains__(self, name: object, /) -> bool:
        """Whether a tool of this name is registered."""
        ...


_MAX_FINDINGS = 50


# -- selecting ---------------------------------------------------------------------------------------------------------


def selects(selector: Selector, spec: ToolSpec) -> bool:
    """Whether a selector covers a tool."""
    facts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
        (selector.tool, (spec.name,)),
        (selector.permission, spec.permissions),
        (selector.risk, (spec.risk,)),
        (selector.effect, (spec.effect,)),
        (selector.owner, (spec.owner,) if spec.owner is not None else ()),
        (selector.label, spec.output_labels),
    )
    return all(any(matches(glob, value) for glob in globs for value in values) for globs, values in facts if globs)


# -- checking ----------------------------------------------------------------------------------------------------------


class _Index:
    """What a registry offers, gathered once per check."""

    def __init__(self, registry: Registry) -> None:
        self.specs = [tool.spec for tool in registry]
        self.by_name = {spec.name: spec for spec in self.specs}
        self.facts: dict[str, set[str]] = {
            "tool": set(self.by_name),
            "permission": {p for s in self.specs for p in s.permissions},
            "risk": {s.risk for s in self.specs},
            "effect": {s.effect for s in self.specs},
            "owner": {s.owner for s in self.specs if s.owner is not None},
            "label": {label for s in self.specs for label in s.output_labels},
        }

    def selected(self, rule: Rule) -> tuple[list[ToolSpec], set[str]]:
        """The tools a rule is about, and the names it lists one by one."""
        named = {n for s in rule.selectors if s.tool for n in s.tool if not is_glob(n)}
        if all(s.tool and not any(map(is_glob, s.tool)) for s in rule.selectors):
            specs = [self.by_name[name] for name in sorted(named) if name in self.by_name]
        else:
            specs = self.specs
        return [spec for spec in specs if any(selects(s, spec) for s in rule.selectors)], named


def check(rules: Iterable[Rule], registry: Registry) -> list[Finding]:
    """Findings of the rules of a policy against a registry, at most about 50."""
    index = _Index(registry)
    findings: list[Finding] = []
    for rule in rules:
        findings += _selectors(rule, index)
        specs, named = index.selected(rule)
        for path, fragment in rule.when.args:
            where: tuple[str | int, ...] = ("when", "args", path)
            problems = {spec.name: list(_argument(rule, spec, path, fragment, where)) for spec in specs}
            findings += _weighed(rule, problems, named, where)
        for setting, path, problem in _duties(rule):
            problems = {spec.name: list(_duty(spec, path, problem, setting)) for spec in specs}
            findings += _weighed(rule, problems, named, setting)
        if len(findings) >= _MAX_FINDINGS:
            break
    return findings


_CODES = {"tool": "AG201", "permission": "AG206", "owner": "AG207", "label": "AG207"}


def _selectors(rule: Rule, index: _Index) -> Iterator[Finding]:
    for place, selector in enumerate(rule.selectors):
        for fact, globs in selector.canonical().items():
            for glob in globs:
                known = index.facts[fact]
                if glob in known or any(matches(glob, value) for value in known):
                    continue
                if glob == "*" and not index.specs:
                    continue
                where = _selector_path(rule, place, fact, glob)
                hint = did_you_mean(glob, known)
                if fact in ("risk", "effect"):
                    yield rule.finding(
                        "AG304", f"no registered tool has {fact} {glob} at present", *where, severity="info"
                    )
                elif fact == "tool" and is_glob(glob):
                    yield rule.finding("AG202", f'glob "{glob}" matches no registered tool', *where, hint=hint)
                else:
                    words = {"tool": "unknown tool", "permission": "no registered tool requires permission"}
                    text = words.get(fact, f"no registered tool has {fact}")
                    yield rule.finding(_CODES[fact], f'{text} "{glob}"', *where, hint=hint)


def _selector_path(rule: Rule, place: int, fact: str, glob: str) -> tuple[str | int, ...]:
    """Where a word of a selector stands in its rule."""
    if rule.document is None:
        return ()
    node: Any = rule.document.value
    for part in rule.path:
        node = node[part]
    if rule.path[:1] == ("approvals",):
        start: tuple[str | int, ...] = ()
    else:
        start, node = (rule.verb,), node[rule.verb]
    if isinstance(node, list):
        start, node = (*start, place), node[place]
    if isinstance(node, dict):
        start, node = (*start, fact), node[fact]
        if isinstance(node, list):
            start = (*start, node.index(glob))
    return start


Problem = tuple[Literal["AG203", "AG204", "AG205", "AG208"], str, tuple[str | int, ...], str, bool]
"""Code, message, place below the rule, hint, and whether to point at the key."""


def _weighed(
    rule: Rule, problems: Mapping[str, list[Problem]], named: set[str], where: tuple[str | int, ...]
) -> Iterator[Finding]:
    """Problems with tools listed by name are errors; with tools met by a glob only when all of them have it."""
    hopeless = bool(problems) and all(problems.values())
    seen = set()
    for tool, found in problems.items():
        for code, message, place, hint, key in found:
            serious = hopeless or tool in named
            if (code, place, serious) in seen:
                continue
            seen.add((code, place, serious))
            if serious:
                yield rule.finding(code, message, *place, key=key, hint=hint)
            else:
                effect = "never matches" if rule.verb == "allow" else "always matches"
                text = f"{message}; the rule {effect} calls of {tool}"
                yield rule.finding("AG303", text, *where, key=True, hint=hint, severity="warning")


_NUMBERS = frozenset({"number", "integer"})
_TEXT, _ARRAY, _OBJECT = frozenset({"string"}), frozenset({"array"}), frozenset({"object"})
_KEYWORDS_OF: tuple[tuple[frozenset[str], str], ...] = (
    (_NUMBERS, "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf"),
    (_TEXT, "minLength maxLength pattern within host scheme email_domain"),
    (_ARRAY, "minItems maxItems uniqueItems items prefixItems contains minContains maxContains"),
    (_OBJECT, "properties patternProperties additionalProperties propertyNames required dependentRequired"),
    (_OBJECT, "minProperties maxProperties"),
    (_TEXT | _ARRAY, "command"),
)
_FITS = {keyword: types for types, keywords in _KEYWORDS_OF for keyword in keywords.split()}


def _argument(
    rule: Rule, spec: ToolSpec, path: str, fragment: Mapping[str, Any], where: tuple[str | int, ...]
) -> Iterator[Problem]:
    schemas = alternatives(spec.input_schema, spec.input_schema)
    steps = path.split(".")
    for depth, name in enumerate(steps):
        below = step(schemas, name, spec.input_schema)
        if not below:
            yield _unknown(spec, steps, depth, schemas, where)
            return
        schemas = below
    yield from _fragment(spec, path, fragment, schemas, where, _is_short(rule, where))


def _is_short(rule: Rule, where: tuple[str | int, ...]) -> bool:
    """Whether the file gives the condition as a scalar or list, so that there is no keyword to point at."""
    if rule.document is None:
        return False
    node: Any = rule.document.value
    for part in (*rule.path, *where):
        node = node[part]
    return not isinstance(node, dict)


def _unknown(
    spec: ToolSpec, steps: Sequence[str], depth: int, schemas: Sequence[Schema], where: tuple[str | int, ...]
) -> Problem:
    names = {n for s in schemas if isinstance(s.get("properties"), Mapping) for n in s["properties"]}
    shown = ".".join(steps[: depth + 1])
    hint = did_you_mean(steps[depth], names)
    if not hint:
        if any("array" in (types_of(s) or ()) for s in schemas):
            hint = "it is a list: use an index, or * for every element"
        else:
            hint = f"it has: {', '.join(sorted(names)[:12])}" if names else "it has no arguments of its own"
    return "AG203", f'unknown argument "{shown}" of {spec.name}', where, hint, True


def _fragment(
    spec: ToolSpec,
    path: str,
    fragment: Mapping[str, Any],
    schemas: Sequence[Schema],
    where: tuple[str | int, ...],
    short: bool,
) -> Iterator[Problem]:
    types: set[str] | None = set()
    for schema in schemas:
        some = types_of(schema)
        types = None if some is None or types is None else types | some
    for keyword, operand in fragment.items():
        place = where if short else (*where, keyword)
        fits = _FITS.get(keyword)
        if fits is not None and types is not None and not types & fits:
            yield (
                "AG204",
                f"{keyword} does not fit {path} of {spec.name}, which is {_list(types)}",
                place,
                "use * for the elements of a list" if "array" in types else "",
                True,
            )
        elif keyword in ("const", "enum"):
            for position, value in enumerate(operand if keyword == "enum" else [operand]):
                if not any(_permits(schema, value, spec.input_schema) for schema in schemas):
                    spot = (*place, position) if keyword == "enum" else place
                    options = [v for s in schemas for v in s.get("enum", ())]
                    hint = (
                        did_you_mean(value, [o for o in options if isinstance(o, str)])
                        if isinstance(value, str)
                        else ""
                    )
                    text = f"{path} of {spec.name} can never be this value"
                    yield "AG205", text, spot, hint or f"it is {_list(types or {'something else'})}", False
        elif keyword == "type":
            wanted = {operand} if isinstance(operand, str) else set(operand)
            if types is not None and not _overlap(wanted, types):
                yield "AG205", f"{path} of {spec.name} is {_list(types)}", place, "", False
        elif keyword == "not" and isinstance(operand, Mapping):
            yield from _fragment(spec, path, operand, schemas, place, _short_not(rule_value=operand))
        elif keyword in ("allOf", "anyOf", "oneOf"):
            for position, item in enumerate(operand):
                if isinstance(item, Mapping):
                    yield from _fragment(spec, path, item, schemas, (*place, position), False)
        elif keyword in ("items", "contains") and isinstance(operand, Mapping):
            below = step(schemas, "*", spec.input_schema)
            if below:
                yield from _fragment(spec, f"{path}.*", operand, below, place, False)
        elif keyword == "properties":
            for name, item in operand.items():
                below = step(schemas, name, spec.input_schema)
                if not below:
                    yield _unknown(spec, [*path.split("."), name], path.count(".") + 1, schemas, (*place, name))
                elif isinstance(item, Mapping):
                    yield from _fragment(spec, f"{path}.{name}", item, below, (*place, name), False)


def _short_not(*, rule_value: Mapping[str, Any]) -> bool:
    # "not: x" and "not: {const: x}" are one fragment; pointing at "not" is right for both.
    return set(rule_value) <= {"const", "enum"}


def _overlap(wanted: set[str], types: set[str]) -> bool:
    return bool(wanted & types) or bool(wanted & _NUMBERS and types & _NUMBERS)


def _list(types: Iterable[str]) -> str:
    return " or ".join(sorted(types))


def _permits(schema: Schema, value: Any, root: Schema) -> bool:
    """Whether a schema may permit a value; in doubt it does."""
    found = kind(value)
    types = types_of(schema)
    if types is not None and found not in types:
        if found != "number" or not types & _NUMBERS or ("number" not in types and value != int(value)):
            return False
    if isinstance(schema.get("enum"), list) and not any(same(value, option) for option in schema["enum"]):
        return False
    if "const" in schema and same(value, schema["const"]) is False:
        return False
    if found == "number":
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        return not (
            (_real(low) and value < low)
            or (_real(high) and value > high)
            or (_real(above) and value <= above)
            or (_real(below) and value >= below)
        )
    if found == "string":
        longest, shortest = schema.get("maxLength"), schema.get("minLength")
        return not ((_real(longest) and len(value) > longest) or (_real(shortest) and len(value) < shortest))
    if found == "array" and types is not None:
        return all(any(_permits(s, item, root) for s in step([schema], "*", root)) for item in value)
    return True


def _real(value: Any) -> TypeGuard[float]:
    return kind(value) == "number"


# -- obligations -------------------------------------------------------------------------------------------------------


def _duties(rule: Rule) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    """Settings of a rule that change arguments: place, path, and what is put there."""
    for path in rule.obligations.redact_arguments:
        yield ("redact",), path, ("redact", "[redacted]")
    for path, bounds in rule.obligations.clamp:
        yield ("clamp", f"args.{path}"), path, ("clamp", bounds)
    for path, value in rule.obligations.rewrite:
        yield ("rewrite", f"args.{path}"), path, ("rewrite", value)


def _duty(spec: ToolSpec, path: str, duty: tuple[str, Any], where: tuple[str | int, ...]) -> Iterator[Problem]:
    root = spec.input_schema
    schemas = alternatives(root, root)
    steps = path.split(".")
    for depth, name in enumerate(steps):
        below = step(schemas, name, root)
        if not below:
            yield _unknown(spec, steps, depth, schemas, where)
            return
        schemas = below
    what, value = duty
    if what == "clamp":
        types = {t for s in schemas for t in types_of(s) or ("anything",)}
        if not types <= _NUMBERS:
            text = f"{path} of {spec.name} is {_list(types)}; only a number can be clamped"
            yield "AG208", text, where, "deny or require approval instead", True
        elif types == {"integer"} and any(bound is not None and bound != int(bound) for bound in value):
            yield "AG208", f"{path} of {spec.name} is an integer; the bounds must be too", where, "", True
        else:
            for bound in value:
                if bound is not None and not any(_permits(s, bound, root) for s in schemas):
                    yield "AG208", f"{path} of {spec.name} can never be {bound}", where, "", True
    elif not any(_permits(s, value, root) for s in schemas):
        yield "AG208", f"{path} of {spec.name} does not permit what {what} puts there", where, "deny instead", True
