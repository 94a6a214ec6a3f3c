"""JSON Schemas that somebody wrote: read strictly, closed, linear, and the same in both engines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.errors import ToolDefinitionError
from agentguard.tools import given as subject
from agentguard.tools.schema import ArgumentsInvalid
from agentguard.tools.tool import Tool, define
from tests.naming import shown as shown_id

ORDER = {
    "type": "object",
    "properties": {
        "order_id": {"type": "string", "pattern": "^[A-Z]-[0-9]+$", "maxLength": 20},
        "amount": {"type": "integer", "minimum": 1, "maximum": 100},
        "mode": {"enum": ["fast", "slow"], "default": "slow"},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "land": {"type": "string", "default": "DE"}},
            "required": ["city"],
        },
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "maxItems": 3},
    },
    "required": ["order_id"],
    "$defs": {
        "line": {"type": "object", "properties": {"sku": {"type": "string"}, "n": {"type": "integer", "default": 1}}}
    },
}


def remote(**arguments: Any) -> Any:
    return arguments


def made(schema: Any, function: Callable[..., Any] = remote) -> Tool:
    return define(function, {"input_schema": schema}, name="remote")


def effective(schema: Any, **arguments: Any) -> dict[str, Any]:
    return made(schema).validate(arguments).effective


def problem(schema: Any, **arguments: Any) -> str:
    with pytest.raises(ArgumentsInvalid) as caught:
        made(schema).validate(arguments)
    return caught.value.message


def rejected(schema: Any, function: Callable[..., Any] = remote, code: str = "AG222") -> str:
    with pytest.raises(ToolDefinitionError) as caught:
        made(schema, function)
    assert caught.value.code == code
    return str(caught.value)


def test_defaults_are_filled_in_at_every_depth() -> None:
    assert effective(ORDER, order_id="A-1", address={"city": "Ulm"}, lines=[{}, {"n": 2}]) == {
        "order_id": "A-1",
        "mode": "slow",
        "address": {"city": "Ulm", "land": "DE"},
        "lines": [{"n": 1}, {"n": 2}],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "order_id: is required"),
        ({"order_id": 5}, "order_id: must be of type string"),
        ({"order_id": "a-1"}, "order_id: must match the pattern"),
        ({"order_id": "A-1\n"}, "order_id: must match the pattern"),
        ({"order_id": "A-" + "1" * 30}, "at most 20 characters"),
        ({"order_id": "A-1", "amount": 0}, "amount: must be at least 1"),
        ({"order_id": "A-1", "amount": 101}, "amount: must be at most 100"),
        ({"order_id": "A-1", "amount": True}, "amount: must be of type integer"),
        ({"order_id": "A-1", "amount": "1"}, "amount: must be of type integer"),
        ({"order_id": "A-1", "amount": 1.0}, "amount: must be an integer"),
        ({"order_id": "A-1", "mode": "medium"}, "mode: must be one of ['fast', 'slow']"),
        ({"order_id": "A-1", "amuont": 1}, 'did you mean "amount"?'),
        ({"order_id": "A-1", "address": {}}, "address.city: is required"),
        ({"order_id": "A-1", "address": {"city": "a", "cty": "b"}}, "address: has an unknown argument"),
        ({"order_id": "A-1", "lines": [{"evil": 1}]}, "lines.0: has an unknown argument"),
        ({"order_id": "A-1", "lines": [{"n": 1.0}]}, "lines.0.n: must be an integer"),
        ({"order_id": "A-1", "lines": [{}] * 4}, "at most 3 items"),
        ({"order_id": "A-1", "amount": float("nan")}, "finite"),
        ({"order_id": "\ud800"}, "Unicode"),
        ({"order_id": "A-1", "lines": ({"sku": object()},)}, "JSON value"),
    ],
)
def test_what_does_not_fit_is_refused_by_path(arguments: dict[str, Any], message: str) -> None:
    found = problem(ORDER, **arguments)
    assert message in found
    assert "evil" not in found


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"const": 1}, 2, "must be 1"),
        ({"exclusiveMinimum": 1}, 1, "more than 1"),
        ({"exclusiveMaximum": 1}, 1, "less than 1"),
        ({"multipleOf": 2}, 3, "multiple of 2"),
        ({"minLength": 2}, "a", "at least 2 characters"),
        ({"minItems": 1}, [], "at least 1 items"),
        ({"uniqueItems": True}, [1, 1], "twice"),
        ({"minProperties": 1}, {}, "at least 1 entries"),
        ({"maxProperties": 0}, {"a": 1}, "at most 0 entries"),
        ({"type": ["string", "null"]}, 1, "string or null"),
        ({"not": {}}, 1, "not"),
        ({"anyOf": [{"type": "string"}]}, 1, "anyOf"),
        (False, 1, "x: "),
    ],
)
def test_every_keyword_says_what_it_expects(schema: Any, value: Any, message: str) -> None:
    assert message in problem({"properties": {"x": schema}}, x=value)


@pytest.mark.parametrize(
    "schema",
    [
        *([], "object", {"type": "array"}, {"type": ["object", "null"]}, {"type": "objekt"}, {"properties": []}),
        *({"properties": {"x": {"type": "int"}}}, {"properties": {"x": {"pattern": "("}}}, {"required": "x"}),
        *({"properties": {"x": {"pattern": "(?=a)b"}}}, {"properties": {"x": {"pattern": r"(a)\1"}}}),
        *({"$schema": "https://example.com/other"}, {"$schema": 5}, {"minimum": float("nan")}, {1: 2}, {"x": object()}),
        *(
            {"properties": {"x": {"$ref": target}}}
            for target in ("http://x/y", "file:///etc/passwd", "#/nope", "other")
        ),
        *({"properties": {"x": {"$ref": target}}} for target in ("#nope", "#/properties/x/$ref")),
        {"properties": {"x": {"type": "integer", "default": "one"}}},
        {"properties": {"x": {"$dynamicRef": "https://example.com/#meta"}}},
    ],
    ids=shown_id,
)
def test_schemas_that_cannot_be_read_are_definition_errors(schema: Any) -> None:
    assert rejected(schema).startswith("tool remote: ")


@pytest.mark.parametrize(
    "target", ["#/$defs/a~1b", "#/$defs/list/anyOf/0", "#named", "#/properties/x/items", "#/$defs/yes"]
)
def test_references_within_the_schema_are_followed(target: str) -> None:
    schema = {
        "properties": {"x": {"type": "array", "items": {"type": "integer"}}, "y": {"$ref": target}},
        "$defs": {
            "a/b": {"type": "integer"},
            "list": {"anyOf": [{"type": "integer"}]},
            "n": {"$anchor": "named", "type": "integer"},
            "yes": {"type": "integer"},
        },
    }
    assert effective(schema, y=1) == {"y": 1}
    assert problem(schema, y="1")


def test_recursive_schemas_work_to_any_depth() -> None:
    schema = {
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "$defs": {"node": {"type": "object", "properties": {"n": {"default": 0}, "next": {"$ref": "#/$defs/node"}}}},
    }
    assert effective(schema, tree={"next": {"next": {}}}) == {"tree": {"n": 0, "next": {"n": 0, "next": {"n": 0}}}}
    assert "unknown" in problem(schema, tree={"next": {"nxet": {}}})


def test_references_that_go_in_a_circle_do_not_hang() -> None:
    schema = {
        "properties": {"x": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    }
    try:
        tool = made(schema)
    except ToolDefinitionError:
        return
    assert tool.validate({"x": 1}).effective == {"x": 1}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"additionalProperties": True}, {"any": 1}),
        ({"additionalProperties": {"type": "integer"}}, {"any": 1}),
        ({"patternProperties": {"^x-": {}}}, {"x-a": 1}),
        ({"allOf": [{"properties": {"a": {}}}]}, {"a": 1}),
        ({"anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]}, {"b": 1}),
        ({"properties": {"a": {"anyOf": [{"properties": {"b": {}}}, {"type": "null"}]}}}, {"a": {"b": 1}}),
        ({"properties": {"a": {"prefixItems": [{"properties": {"b": {}}}, True]}}}, {"a": [{"b": 1}, 2, 3]}),
    ],
)
def test_objects_stay_open_where_the_schema_says_so(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert effective(schema, **arguments) == arguments


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({}, {"a": 1}),
        ({"properties": {"a": {"anyOf": [{"properties": {"b": {}}}, {"type": "null"}]}}}, {"a": {"c": 1}}),
        ({"properties": {"a": {"prefixItems": [{"properties": {"b": {}}}]}}}, {"a": [{"c": 1}]}),
        ({"additionalProperties": {"properties": {"b": {}}}}, {"a": {"c": 1}}),
        ({"properties": {"a": {"items": {"properties": {"b": {}}}}}}, {"a": [{"c": 1}]}),
    ],
)
def test_objects_are_closed_where_the_schema_is_silent(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert "unknown" in problem(schema, **arguments) or "anyOf" in problem(schema, **arguments)


@pytest.mark.parametrize("dialect", ["http://json-schema.org/draft-07/schema#", subject.DIALECT])
def test_other_dialects_are_understood(dialect: str) -> None:
    schema = {"$schema": dialect, "properties": {"x": {"type": "integer"}}}
    assert effective(schema, x=1) == {"x": 1}
    assert problem(schema, x="1")


def test_the_schema_and_the_arguments_are_copies() -> None:
    schema: dict[str, Any] = {"properties": {"x": {"type": "array", "default": [1]}}}
    tool = made(schema)
    schema["properties"]["x"]["type"] = "string"
    inner: list[Any] = [2]
    validated = tool.validate({"x": inner})
    inner.append(3)
    validated.kwargs["x"].append(4)
    assert validated.effective == {"x": [2]}
    tool.validate({}).kwargs["x"].append(5)
    assert tool.validate({}).effective == {"x": [1]}


def test_the_function_and_the_schema_speak_of_the_same_arguments() -> None:
    def act(a: int, b: int = 2) -> None:
        del a, b

    tool = made({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}, act)
    assert tool.validate({"a": 1}).effective == {"a": 1, "b": 2}
    assert tool.spec.input_schema["properties"]["b"]["default"] == 2
    assert "needs 'a'" in rejected({"properties": {"b": {}}}, act)
    assert "needs 'a'" in rejected({"properties": {"a": {}}}, act)
    assert "does not take" in rejected({"properties": {"a": {}, "c": {}}, "required": ["a"]}, act)
    assert made({"properties": {"a": {"default": 1}}}, act).validate({}).kwargs == {"a": 1}


def test_function_defaults_that_the_schema_does_not_permit_stay_with_the_function() -> None:
    marker: Any = object()

    def act(a: str = None, b: Any = marker) -> None:  # type: ignore[assignment]  # noqa: RUF013
        del a, b

    tool = made({"properties": {"a": {"type": "string"}, "b": {}}}, act)
    assert tool.validate({}).effective == {}


def test_injected_parameters_cannot_be_in_the_schema() -> None:
    from agentguard.domain.context import CallContext

    def act(call: CallContext) -> None:
        del call

    rejected({"properties": {"call": {}}}, act, "AG220")


@pytest.fixture
def without_rust(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without jsonschema-rs."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)


@pytest.mark.usefixtures("without_rust")
def test_without_the_fast_engine_the_same_holds() -> None:
    schema = {**ORDER, "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}
    assert effective(schema, order_id="A-1", lines=[{}])["lines"] == [{"n": 1}]
    for arguments in ({}, {"order_id": "A-1\n"}, {"order_id": "A-1", "amount": "1"}, {"order_id": "A-1", "x-a": "1"}):
        assert problem(schema, **arguments)
    assert effective(schema, order_id="A-1", **{"x-a": 1})["x-a"] == 1
    assert "unknown" in problem(schema, order_id="A-1", other=1)


@pytest.mark.usefixtures("without_rust")
@pytest.mark.parametrize("place", ["pattern", "patternProperties"])
def test_without_the_fast_engine_only_linear_patterns_load(place: str) -> None:
    part: dict[str, Any] = {"pattern": "(a+)+$"} if place == "pattern" else {"patternProperties": {"(a+)+$": {}}}
    assert "linear" in rejected({"properties": {"x": part}}) or "repeats" in rejected({"properties": {"x": part}})


@pytest.mark.usefixtures("without_rust")
def test_without_the_fast_engine_circles_are_refused_when_they_are_met() -> None:
    schema = {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert "cannot be checked" in problem(schema, x=1)
    assert effective(schema) == {}


def test_references_to_the_whole_schema_work() -> None:
    schema = {"properties": {"n": {"type": "integer"}, "sub": {"$ref": "#"}}}
    assert effective(schema, sub={"sub": {"n": 1}}) == {"sub": {"sub": {"n": 1}}}
    assert problem(schema, sub={"sub": {"n": "1"}})


def test_defaults_beside_references_are_kept() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a", "default": 2}}}
    assert effective(schema) == {"b": 2}


schemas = st.recursive(
    st.one_of(
        st.sampled_from(
            [{"type": kind} for kind in ("string", "integer", "number", "boolean", "null", "object", "array")]
        ),
        st.builds(lambda low, high: {"minimum": low, "maximum": high}, st.integers(-3, 3), st.integers(-3, 9)),
        st.builds(lambda n: {"maxLength": n}, st.integers(0, 3)),
        st.builds(lambda values: {"enum": values}, st.lists(st.sampled_from([0, 1, "a", None, True]), min_size=1)),
        st.sampled_from(
            [{"pattern": "^a[0-9]*$"}, {"pattern": "^[ab]{1,2}$"}, {"uniqueItems": True}, {"const": 1}, True, False]
        ),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"properties": {"a": a, "b": b}, "required": ["a"]}, inner, inner),
        st.builds(lambda a: {"items": a, "minItems": 1}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"oneOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"allOf": [a, {"not": b}]}, inner, inner),
        st.builds(lambda a, b: {"if": a, "then": b}, inner, inner),
        st.builds(lambda a: {"additionalProperties": a, "maxProperties": 2}, inner),
    ),
    max_leaves=6,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 10) | st.sampled_from([1.0, 2.5, "a", "a1", "ab", "abc", "", "ä"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=6,
)


@given(schemas, values)
def test_both_engines_agree(schema: Any, value: Any) -> None:
    whole = {"properties": {"x": schema}}
    fast, fast_violations = subject.compile_schema(whole, "tool t")
    slow, slow_violations = subject.compile_fallback(whole, "tool t")
    instance = {"x": value}
    assert fast(instance) == slow(instance)
    assert bool(list(fast_violations(instance))) == bool(list(slow_violations(instance)))
