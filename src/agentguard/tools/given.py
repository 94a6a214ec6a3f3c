"""JSON Schemas that somebody wrote: checked, closed and compiled once, when a tool is defined.

What must stay true: a schema that cannot be read is an error when the tool is defined; nothing is ever fetched;
patterns run in linear time; keys that the schema does not name are refused; defaults are filled in before
anything is decided. jsonschema-rs validates; where it cannot be imported jsonschema does, with patterns
restricted to those that are linear by construction. ``format`` is an annotation, as the standard has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json

from agentguard.canonical import MAX_DEPTH
from agentguard.errors import ToolDefinitionError
from agentguard.tools.patterns import check_pattern
from agentguard.tools.schema import (
    ArgumentsInvalid,
    Output,
    OutputInvalid,
    Plain,
    Problem,
    Validated,
    at,
    dotted,
    property_names,
    shown,
    unknown_argument,
    walk,
)
from agentguard.tools.settings import fail
from agentguard.tools.signature import Signature, written

DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""Schemas without ``$schema`` are read as JSON Schema 2020-12."""

_DRAFTS = {
    DIALECT: "Draft202012Validator",
    "https://json-schema.org/draft/2019-09/schema": "Draft201909Validator",
    "http://json-schema.org/draft-07/schema": "Draft7Validator",
    "http://json-schema.org/draft-06/schema": "Draft6Validator",
    "http://json-schema.org/draft-04/schema": "Draft4Validator",
}

_COMBINING = frozenset(
    {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef", "dependentSchemas"}
    | {"dependencies", "patternProperties", "unevaluatedProperties"}
)


class Violation(NamedTuple):
    """One keyword that failed: where in the value, which keyword, what the keyword says, and what was found."""

    path: tuple[str | int, ...]
    keyword: str
    expected: Any
    found: Any


Check = Callable[[Any], Iterator[Violation]]
"""Gives every violation of a compiled schema."""


def read_schema(given: Any, where: str) -> dict[str, Any]:
    """A schema as a checked deep copy.

    Raises:
        ToolDefinitionError: AG222, it is not JSON, not a schema, or refers to something outside itself.
    """
    import jsonschema.exceptions

    if not isinstance(given, Mapping):
        fail(where, "AG222", f"the schema must be a mapping, not {shown(given)}")
    try:
        schema: dict[str, Any] = Plain(instances=False).copy(given)
    except ArgumentsInvalid as error:
        raise ToolDefinitionError(f"{where}: the schema is not JSON: {error.detail}", code="AG222") from error
    validator = getattr(jsonschema, _draft(schema, where))
    try:
        validator.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        place = ".".join(map(str, error.absolute_path))
        fail(
            where, "AG222", f"the schema is wrong{f' at {shown(place)}' if place else ''}: {shown(error.message, 200)}"
        )
    for node in walk(schema):
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            target = node.get(keyword)
            if isinstance(target, str) and _resolved(schema, target) is None:
                fail(
                    where,
                    "AG222",
                    f"{keyword} {shown(target)} does not lead to a part of the schema itself; nothing is fetched. "
                    'Put the definition under "$defs" and refer to "#/$defs/name"',
                )
    return schema


def _draft(schema: Mapping[str, Any], where: str) -> str:
    dialect = schema.get("$schema", DIALECT)
    draft = _DRAFTS.get(dialect.rstrip("#")) if isinstance(dialect, str) else None
    if draft is None:
        fail(where, "AG222", f"$schema {shown(dialect)} is not a dialect that is known; use {DIALECT}")
    return draft


def _resolved(schema: Mapping[str, Any], target: str) -> Any:
    """The part of the schema that a local reference leads to, or ``None``."""
    if target == "#":
        return schema
    if target.startswith("#/"):
        part: Any = schema
        for escaped in target[2:].split("/"):
            step = escaped.replace("%25", "%").replace("~1", "/").replace("~0", "~")
            if isinstance(part, dict) and step in part:
                part = part[step]
            elif isinstance(part, list) and step.isdecimal() and int(step) < len(part):
                part = part[int(step)]
            else:
                return None
        return part if isinstance(part, (dict, bool)) else None
    if target.startswith("#"):
        anchored = [n for n in walk(schema) if target[1:] in (n.get("$anchor"), n.get("$dynamicAnchor"))]
        return anchored[0] if len(anchored) == 1 else None
    return None


def compile_schema(schema: Mapping[str, Any], where: str) -> tuple[Callable[[Any], bool], Check]:
    """Compile a schema that :func:`read_schema` has checked.

    Returns:
        Whether a value fits, and every violation of one that does not.

    Raises:
        ToolDefinitionError: AG222, it does not compile: as a rule a pattern that cannot run in linear time.
    """
    draft = _draft(schema, where)
    try:
        import jsonschema_rs  # pyright: ignore[reportMissingImports]  # a compiled module without stubs
    except ImportError:
        return compile_fallback(schema, where)

    def retrieve(uri: str) -> Any:
        raise LookupError(f"{uri} is not fetched")

    try:
        compiled = getattr(jsonschema_rs, draft)(
            schema, validate_formats=False, retriever=retrieve, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        text = str(error).split("\n", 1)[0]
        fail(where, "AG222", f"the schema does not compile: {shown(text, 200)} (patterns must run in linear time)")

    def violations(value: Any) -> Iterator[Violation]:
        for error in compiled.iter_errors(value):
            location = list(error.schema_path)
            keyword = next((str(step) for step in reversed(location) if isinstance(step, str)), "")
            yield Violation(tuple(error.instance_path), keyword, at(schema, location), error.instance)

    return compiled.is_valid, violations


def compile_fallback(schema: Mapping[str, Any], where: str) -> tuple[Callable[[Any], bool], Check]:
    """Compile with jsonschema, for platforms without jsonschema-rs; patterns must be linear by construction.

    Raises:
        ToolDefinitionError: AG222, a pattern is not provably linear.
    """
    import jsonschema
    import jsonschema.exceptions
    import jsonschema.validators
    import referencing

    patterns = {}
    for node in walk(schema):
        texts = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
        if isinstance(node.get("patternProperties"), dict):
            texts += node["patternProperties"]
        for text in texts:
            try:
                patterns[text] = check_pattern(text)
            except ValueError as error:
                fail(where, "AG222", f"pattern {shown(text)}: {error}")

    def pattern(validator: Any, expected: str, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and patterns[expected].search(instance) is None:
            yield jsonschema.exceptions.ValidationError("does not match the pattern")

    def pattern_properties(validator: Any, expected: Any, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            for text, subschema in expected.items():
                for key, value in instance.items():
                    if patterns[text].search(key) is not None:
                        yield from validator.descend(value, subschema, path=key, schema_path=text)

    extend: Any = jsonschema.validators.extend
    kind = extend(
        getattr(jsonschema, _draft(schema, where)), {"pattern": pattern, "patternProperties": pattern_properties}
    )
    compiled = kind(schema, registry=referencing.Registry())  # an empty registry fetches nothing

    def violations(value: Any) -> Iterator[Violation]:
        for error in compiled.iter_errors(value):
            yield Violation(tuple(error.absolute_path), str(error.validator), error.validator_value, error.instance)

    return compiled.is_valid, violations


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with objects that do not speak of other keys closed to them, in place.

    An object is left open where another keyword beside it may allow further keys (``allOf``, ``$ref`` and the
    like), because closing it would refuse what the schema permits.
    """
    composed = any("allOf" in node for node in walk(schema))

    def visit(node: Any, depth: int) -> None:
        if not isinstance(node, dict) or depth > MAX_DEPTH:
            return
        properties = node.get("properties")
        if isinstance(properties, dict):
            if not _COMBINING & node.keys():
                node.setdefault("additionalProperties", False)
            for part in properties.values():
                visit(part, depth + 1)
        else:
            for keyword in ("anyOf", "oneOf"):
                for part in node.get(keyword, []):
                    visit(part, depth + 1)
        for keyword in ("items", "additionalProperties"):
            visit(node.get(keyword), depth + 1)
        for part in node.get("prefixItems", []):
            visit(part, depth + 1)
        for keyword in () if composed else ("$defs", "definitions"):
            for part in node.get(keyword, {}).values():
                visit(part, depth + 1)

    visit(schema, 0)
    return schema


class GivenInput:
    """Checks arguments against a JSON Schema that somebody wrote."""

    __slots__ = ("_fits", "_known", "_names", "_violations", "schema")

    def __init__(self, given: Any, signature: Signature, where: str) -> None:
        schema = read_schema(given, where)
        if schema.setdefault("type", "object") != "object":
            fail(
                where,
                "AG222",
                f'arguments are an object, so the schema\'s type must be "object", not {schema["type"]!r}',
            )
        schema.setdefault("properties", {})
        self.schema: dict[str, Any] = closed(schema)
        properties: dict[str, Any] = schema["properties"]
        self._match(signature, properties, where)
        self._known = property_names(schema)
        shut = schema.get("additionalProperties") is False and not schema.get("patternProperties")
        self._names: frozenset[str] | None = frozenset(properties) if shut else None
        self._fits, self._violations = compile_schema(schema, where)
        for name, part in properties.items():
            if isinstance(part, dict) and "default" in part and not self._fits_alone(part, part["default"], where):
                fail(where, "AG222", f"the default of {shown(name)} does not fit its own schema")

    def _fits_alone(self, part: Mapping[str, Any], value: Any, where: str) -> bool:
        shared: dict[str, Any] = {
            key: self.schema[key] for key in ("$schema", "$defs", "definitions") if key in self.schema
        }
        try:
            return compile_schema({**shared, **part}, where)[0](value)
        except ToolDefinitionError:
            return True  # it refers to other parts of the schema; the whole is checked at each call

    def _match(self, signature: Signature, properties: dict[str, Any], where: str) -> None:
        """The schema and the function must speak of the same arguments."""
        parameters = {p.name: p for p in signature.parameters}
        for name in properties:
            if name in signature.injected:
                fail(where, "AG220", f"{shown(name)} is injected and cannot be in the schema")
            if name not in parameters and not signature.variadic:
                fail(where, "AG222", f"the schema has {shown(name)}, which the function does not take")
        required = self.schema.get("required", [])
        for name, parameter in parameters.items():
            if name not in properties:
                if parameter.required:
                    fail(where, "AG222", f"the function needs {shown(name)}, which the schema does not have")
                continue
            part = properties[name]
            if parameter.required and name not in required and "default" not in part:
                fail(where, "AG222", f"the function needs {shown(name)}: make it required or give it a default")
            if not parameter.required and isinstance(part, dict) and "default" not in part and name not in required:
                try:
                    default = Plain(instances=False).copy(parameter.default)
                except ArgumentsInvalid:
                    continue
                if self._fits_alone(part, default, where):
                    part["default"] = default  # so that policy sees what takes effect

    def validate(self, arguments: Mapping[str, Any]) -> Validated:
        """Check arguments and fill in defaults.

        Raises:
            ArgumentsInvalid: They do not fit.
        """
        if not isinstance(arguments, Mapping):
            raise ArgumentsInvalid([Problem("", "must be an object")])
        effective = Plain(instances=False, known=self._known).copy(arguments)
        if self._names is not None:
            for name in effective:
                if name not in self._names:
                    raise ArgumentsInvalid([unknown_argument(name, self._names)])
        self._complete(self.schema, effective, ())
        try:
            if not self._fits(effective):
                raise ArgumentsInvalid([self._problem(item) for item in self._violations(effective)])
        except (RecursionError, OverflowError, ValueError) as error:
            raise ArgumentsInvalid([Problem("", "cannot be checked", type(error).__name__)]) from error
        return Validated(Plain(instances=False).copy(effective), effective)

    def _complete(self, schema: Any, value: Any, path: tuple[str | int, ...]) -> None:
        """Fill in defaults; a number with a fraction part, even ``.0``, is not an integer here."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = _resolved(self.schema, schema["$ref"])
        if not isinstance(schema, dict):
            return
        if isinstance(value, float) and schema.get("type") == "integer":
            raise ArgumentsInvalid([Problem(dotted(path, self._known), "must be an integer", f"found {shown(value)}")])
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            for name, part in properties.items():
                if name not in value and isinstance(part, dict) and "default" in part:
                    value[name] = Plain(instances=False).copy(part["default"])
            others = schema.get("additionalProperties")
            for name, item in value.items():
                self._complete(properties.get(name, others), item, (*path, name))
        elif isinstance(value, list):
            first = schema.get("prefixItems", [])
            for index, item in enumerate(value):
                self._complete(first[index] if index < len(first) else schema.get("items"), item, (*path, index))

    def _problem(self, item: Violation) -> Problem:
        path, message = item.path, _expectation(item.keyword, item.expected)
        if item.keyword == "required" and isinstance(item.found, dict) and isinstance(item.expected, list):
            missing = [name for name in item.expected if name not in item.found]
            if missing:
                path, message = (*path, missing[0]), "is required"
        if item.keyword in ("additionalProperties", "unevaluatedProperties"):
            message = "has an unknown argument"
        return Problem(dotted(path, self._known), message, f"found {shown(item.found)}")


def _expectation(keyword: str, expected: Any) -> str:
    """What a keyword asks for, said without the value."""
    text = shown(expected, 120) if not isinstance(expected, str) else expected[:120]
    words = {
        "type": f"must be of type {' or '.join(map(str, expected)) if isinstance(expected, list) else text}",
        "enum": f"must be one of {text}",
        "const": f"must be {text}",
        "minimum": f"must be at least {text}",
        "maximum": f"must be at most {text}",
        "exclusiveMinimum": f"must be more than {text}",
        "exclusiveMaximum": f"must be less than {text}",
        "multipleOf": f"must be a multiple of {text}",
        "minLength": f"must have at least {text} characters",
        "maxLength": f"must have at most {text} characters",
        "pattern": f"must match the pattern {text}",
        "minItems": f"must have at least {text} items",
        "maxItems": f"must have at most {text} items",
        "uniqueItems": "must not have the same item twice",
        "minProperties": f"must have at least {text} entries",
        "maxProperties": f"must have at most {text} entries",
    }
    return words.get(keyword, f"does not satisfy {keyword}" if keyword else "is not permitted")


def _demand(violation: Violation) -> str:
    expected, found = violation.expected, violation.found
    if violation.keyword == "required" and isinstance(expected, list) and isinstance(found, dict):
        return f"must have {', '.join(shown(name) for name in expected if name not in found)}"
    return _expectation(violation.keyword, expected)


class GivenResult:
    """Checks results against a JSON Schema that somebody wrote."""

    __slots__ = ("_fits", "_violations", "schema")

    def __init__(self, given: Any, where: str) -> None:
        self.schema: dict[str, Any] | None = read_schema(given, where)
        self._fits, self._violations = compile_schema(self.schema, where)

    def check(self, value: Any) -> Output:
        """Check a result and write it as JSON.

        Raises:
            OutputInvalid: It does not fit, or has no JSON form.
        """
        text = written(value)
        form = from_json(text)
        try:
            if not self._fits(form):
                first = next(iter(self._violations(form)))
                place = shown(".".join(map(str, first.path)), 120) if first.path else "it"
                raise OutputInvalid(
                    "The tool returned something that its definition does not permit.",
                    f"the result does not satisfy the output schema: {place} {_demand(first)}, found {shown(first.found)}",
                )
        except (RecursionError, OverflowError, ValueError) as error:
            raise OutputInvalid(
                "The tool returned something that cannot be checked.", f"{type(error).__name__}: {shown(error, 200)}"
            ) from error
        return Output(value, text)

    def revive(self, text: str | bytes) -> Any:
        """The value out of a stored JSON text."""
        return from_json(text)
