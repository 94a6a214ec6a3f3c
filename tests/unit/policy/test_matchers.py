"""Conditions on values: true, false, unknown."""

from __future__ import annotations

import math
import random
from enum import StrEnum
from typing import Any

import jsonschema
import pytest

from agentguard.globbing import any_of, matches
from agentguard.policy.matchers import NotLinear, build, pattern_search
from agentguard.policy.recognising import plain_host
from agentguard.policy.truth import ABSENT, WrongShape, both, either, kind, opposite, reach, same


class Colour(StrEnum):
    RED = "red"


def same_path(path: str) -> str:
    return path


def judge(fragment: dict[str, Any], value: Any, **options: Any) -> bool | None:
    return build(fragment, same_path, **options)(value)


T, F, U = True, False, None

TABLE: list[tuple[dict[str, Any], Any, bool | None]] = [
    ({"const": 1}, 1, T),
    ({"const": 1}, 1.0, T),
    ({"const": 1}, True, U),
    ({"const": 1}, "1", U),
    ({"const": 1}, None, F),
    ({"const": True}, 1, U),
    ({"const": True}, True, T),
    ({"const": None}, None, T),
    ({"const": None}, 0, U),
    ({"const": "a"}, "a", T),
    ({"const": "a"}, "b", F),
    ({"const": "a"}, None, F),
    ({"const": "a"}, 1, U),
    ({"const": "red"}, Colour.RED, T),
    ({"const": "a"}, ABSENT, U),
    ({"const": [1, {"a": 2}]}, [1.0, {"a": 2}], T),
    ({"const": [1]}, [True], F),
    ({"const": [1]}, [1, 1], F),
    ({"const": {"a": 1}}, {"b": 1}, F),
    ({"const": [object]}, "x", U),
    ({"enum": [1, 2]}, 2, T),
    ({"enum": [1, 2]}, 3, F),
    ({"enum": ["a", 1]}, 1, T),
    ({"enum": ["a", None]}, None, T),
    ({"enum": ["a", "b"]}, "c", F),
    ({"maximum": 5}, 5, T),
    ({"maximum": 5}, 5.1, F),
    ({"maximum": 5}, True, U),
    ({"maximum": 5}, "5", U),
    ({"maximum": 5}, math.nan, U),
    ({"maximum": 5}, -math.inf, U),
    ({"maximum": 5}, ABSENT, U),
    ({"minimum": 5}, 10**400, T),
    ({"minimum": 5}, 4, F),
    ({"minimum": 5}, math.inf, U),
    ({"exclusiveMaximum": 5}, 5, F),
    ({"exclusiveMinimum": 5}, 5, F),
    ({"exclusiveMinimum": 5}, 6, T),
    ({"minimum": 1, "maximum": 3}, 2, T),
    ({"minimum": 1, "maximum": 3}, 4, F),
    ({"minimum": 1, "pattern": "x"}, 2, U),
    ({"multipleOf": 0.1}, 0.3, T),
    ({"multipleOf": 2}, 3, F),
    ({"multipleOf": 2}, "4", U),
    ({"type": "integer"}, 1.0, T),
    ({"type": "integer"}, 1.5, F),
    ({"type": ["string", "null"]}, None, T),
    ({"type": "string"}, object(), U),
    ({"minLength": 2}, "é", F),
    ({"maxLength": 2}, "ab", T),
    ({"minItems": 1}, [], F),
    ({"maxItems": 1}, "a", U),
    ({"minProperties": 1}, {}, F),
    ({"maxProperties": 1}, {"a": 1}, T),
    ({"pattern": "^a+$"}, "aa", T),
    ({"pattern": "^a+$"}, "aa\n", F),
    ({"pattern": "^red$"}, Colour.RED, T),
    ({"pattern": "a"}, 1, U),
    ({"uniqueItems": True}, [1, 1.0], F),
    ({"uniqueItems": True}, [1, True, "1"], T),
    ({"uniqueItems": True}, [math.nan], U),
    ({"uniqueItems": True}, "ab", U),
    ({"uniqueItems": False}, [1, 1], T),
    ({"items": {"maximum": 1}}, [0, 1], T),
    ({"items": {"maximum": 1}}, [0, 2], F),
    ({"items": {"maximum": 1}}, [0, "2"], U),
    ({"items": {"maximum": 1}}, [2, "2"], F),
    ({"items": {"maximum": 1}}, {}, U),
    ({"items": False}, [], T),
    ({"items": False}, [1], F),
    ({"prefixItems": [{"const": "a"}], "items": False}, ["a"], T),
    ({"prefixItems": [{"const": "a"}], "items": False}, ["a", 1], F),
    ({"prefixItems": [True]}, ["a", 1], T),
    ({"contains": {"const": "a"}}, ["b", "a"], T),
    ({"contains": {"const": "a"}}, ["b"], F),
    ({"contains": {"const": "a"}}, ["b", 1], U),
    ({"contains": {"const": "a"}}, "a", U),
    ({"contains": {"const": "a"}, "maxContains": 1}, ["a", "a"], F),
    ({"contains": {"const": "a"}, "minContains": 2}, ["a", "a"], T),
    ({"contains": {"const": "a"}, "maxContains": 1}, ["a", 7], U),
    ({"properties": {"a": {"maximum": 1}}}, {"a": 1}, T),
    ({"properties": {"a": {"maximum": 1}}}, {}, U),
    ({"properties": {"a": {"maximum": 1, "optional": True}}}, {}, T),
    ({"properties": {"a": {"maximum": 1, "optional": True}}}, {"a": None}, U),
    ({"properties": {"a": True}}, [], U),
    ({"properties": {"a": True}, "additionalProperties": False}, {"a": 1}, T),
    ({"properties": {"a": True}, "additionalProperties": False}, {"b": 1}, F),
    ({"additionalProperties": {"maximum": 1}}, {"b": 2}, F),
    ({"patternProperties": {"^x": {"maximum": 1}}, "additionalProperties": False}, {"x1": 1}, T),
    ({"patternProperties": {"^x": {"maximum": 1}}, "additionalProperties": False}, {"x1": 2}, F),
    ({"patternProperties": {"^x": {"maximum": 1}}}, {"y": 2}, T),
    ({"propertyNames": {"pattern": "^[a-z]+$"}}, {"a": 1, "B": 2}, F),
    ({"propertyNames": {"pattern": "^[a-z]+$"}}, [], U),
    ({"required": ["a"]}, {"a": 1}, T),
    ({"required": ["a"]}, {}, F),
    ({"required": ["a"]}, [], U),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, F),
    ({"dependentRequired": {"a": ["b"]}}, {"c": 1}, T),
    ({"dependentRequired": {"a": ["b"]}}, 1, U),
    ({"not": {"const": "a"}}, "b", T),
    ({"not": {"const": "a"}}, 1, U),
    ({"not": {"const": "a"}}, ABSENT, U),
    ({"not": {"const": "a", "optional": True}}, ABSENT, F),
    ({"not": True}, 1, F),
    ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 2, T),
    ({"anyOf": [{"const": "a"}, {"minimum": 1}]}, "a", T),
    ({"anyOf": [{"const": "a"}, {"minimum": 1}]}, "b", U),
    ({"anyOf": [{"maximum": 1}, {"minimum": 5}]}, 3, F),
    ({"oneOf": [{"minimum": 1}, {"minimum": 5}]}, 3, T),
    ({"oneOf": [{"minimum": 1}, {"minimum": 5}]}, 6, F),
    ({"oneOf": [{"minimum": 1}, {"pattern": "x"}]}, 6, U),
    ({"if": {"minimum": 5}, "then": {"multipleOf": 5}}, 10, T),
    ({"if": {"minimum": 5}, "then": {"multipleOf": 5}}, 11, F),
    ({"if": {"minimum": 5}, "then": {"multipleOf": 5}}, 1, T),
    ({"if": {"minimum": 5}, "else": {"multipleOf": 5}}, 1, F),
    ({"if": {"minimum": 5}, "then": {"multipleOf": 5}}, "x", U),
    ({"within": "/"}, "/etc/x", T),
    ({"within": "/a"}, "/a/./b/", T),
    ({"within": ["/a"]}, "/ab", F),
    ({"within": "/a"}, "/a/\x00", U),
    ({"within": "/a"}, "/a/" + "x" * 5000, U),
    ({"host": "a.example"}, "https://a.example:70000/", U),
    ({"host": "a.example"}, "https://a.example:080/", U),
    ({"host": "a.example"}, "https://a.example:/", U),
    ({"host": "a.example"}, "https://a.example?x", T),
    ({"host": "a.example"}, "https://b.example/%zz", U),
    ({"host": "a.example"}, "https://b.example/%2F", F),
    ({"host": "a.example"}, "https://1.2.3.4/", U),
    ({"host": "a.example"}, "https://a_b.example/", U),
    ({"host": "a.example"}, "https://ab--c.example/", U),
    ({"host": "a.example"}, "https://1.2.3/", U),
    ({"host": "a.example"}, "https://0x7f.0x1/", U),
    ({"host": "a.example"}, "https://", U),
    ({"host": "a.example"}, "https://" + "a" * 9000, U),
    ({"host": "a.example"}, "https://" + "a." * 130 + "example", U),
    ({"host": "a.example"}, "file:///x", U),
    ({"host": "a.example"}, 5, U),
    ({"scheme": "file"}, "file:///x", T),
    ({"scheme": ["http", "https"]}, "HTTPS://a.example", T),
    ({"scheme": "https"}, "javascript:alert(1)", U),
    ({"scheme": "https"}, "http://a.example", F),
    ({"email_domain": "a.example"}, "x@a.example", T),
    ({"email_domain": "a.example"}, "x@b.example", F),
    ({"email_domain": "a.example"}, ".x@a.example", U),
    ({"email_domain": "a.example"}, "x@a.example.", U),
    ({"email_domain": "a.example"}, "x@[1.2.3.4]", U),
    ({"email_domain": "a.example"}, "x@localhost", U),
    ({"email_domain": "a.example"}, "x@y@a.example", U),
    ({"email_domain": "a.example"}, "x" * 65 + "@a.example", U),
    ({"email_domain": "a.example"}, ["x@a.example"], U),
    ({"command": {"allow": ["git status"]}}, ["git", "status", "-s"], T),
    ({"command": {"allow": ["git status"]}}, ["git", "push"], F),
    ({"command": {"allow": ["git status"]}}, ["git status", ";"], U),
    ({"command": {"allow": ["ls"]}}, "", U),
    ({"command": {"allow": ["ls"]}}, [], U),
    ({"command": {"allow": ["ls"]}}, "l\u0455", U),
    ({"command": "ls"}, 7, U),
    ({"not": {"command": "rm"}}, "rm -rf x; ls", U),
]


@pytest.mark.parametrize(("fragment", "value", "truth"), TABLE)
def test_a_condition_is_true_false_or_unknown(fragment: dict[str, Any], value: Any, truth: bool | None) -> None:
    assert judge(fragment, value) is truth


def test_optional_makes_absence_true_and_null_only_where_it_is_the_default() -> None:
    fragment = {"maximum": 1, "optional": True}
    assert judge(fragment, ABSENT) is True
    assert judge(fragment, None) is None
    assert judge(fragment, None, null_is_absent=True) is True
    assert judge(fragment, 2, null_is_absent=True) is False


def test_kleene_logic() -> None:
    assert both([True, None, False]) is False
    assert both([True, None]) is None
    assert both([]) is True
    assert either([False, None, True]) is True
    assert either([False, None]) is None
    assert either([]) is False
    assert [opposite(v) for v in (True, False, None)] == [False, True, None]


def test_foreign_values_have_no_kind() -> None:
    assert kind(object()) is None
    assert kind(b"x") is None
    assert kind((1, 2)) == "array"
    assert same(1, object()) is None
    assert repr(ABSENT) == "ABSENT"

    class Number(int):
        pass

    class Real(float):
        pass

    assert kind(Number(3)) == "number"
    assert kind(Real("nan")) is None


def test_links_that_lead_elsewhere_make_a_path_unknown() -> None:
    links = {"/a/link": "/etc", "/tmp/way-in": "/a/x", "/a/loop": None}

    def resolve(path: str) -> str:
        found = links.get(path, path)
        if found is None:
            raise OSError("too many links")
        return found

    condition = build({"within": "/a"}, resolve)
    assert condition("/a/link") is None
    assert condition("/tmp/way-in") is None
    assert condition("/a/loop") is None
    assert condition("/a/x") is True
    assert condition("/etc") is False


def test_a_root_that_is_a_link_has_two_names() -> None:
    condition = build({"within": "/a"}, lambda path: path.replace("/a", "/real", 1) if path[:2] == "/a" else path)
    assert condition("/a/x") is True
    assert condition("/real/x") is True
    assert condition("/b") is False


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "a{1000}{1000}", "(?<!x)y"])
def test_patterns_that_need_backtracking_are_refused(pattern: str) -> None:
    with pytest.raises(NotLinear):
        pattern_search(pattern)


def test_without_the_linear_engine_no_pattern_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(NotLinear, match="not installed"):
        pattern_search("never-compiled-before")


def test_an_evil_pattern_answers_at_once() -> None:
    assert judge({"pattern": "^(a+)+$"}, "a" * 100_000 + "b") is False


def test_values_are_reached_through_objects_and_lists() -> None:
    value = {"a": [{"b": 1}, {"b": 2}, {}], "n": None, "s": "x"}
    assert reach(value, ["a", "1", "b"]) == [2]
    assert reach(value, ["a", "*", "b"]) == [1, 2, ABSENT]
    assert reach(value, ["a", "9", "b"]) == [ABSENT]
    assert reach(value, ["a", "1", "*"]) == [2]
    assert reach(value, ["n", "x"], frozenset({1})) == [ABSENT]
    for path in (["n", "x"], ["s", "x"], ["a", "b"], ["a", "-1"], ["a", "²"]):
        with pytest.raises(WrongShape):
            reach(value, path)


def test_hosts_are_plain_or_nothing() -> None:
    assert plain_host("A.Example") == "a.example"
    assert plain_host("127.0.0.1") == "127.0.0.1"
    for odd in ("127.1", "0177.0.0.1", "256.0.0.1", "a..b", "-a.b", "xn--a", "1", "0x1", "a.0x1f", ""):
        assert plain_host(odd) is None


def test_globs_are_linear_and_whole() -> None:
    assert matches("a*c", "abc")
    assert matches("*", "")
    assert matches("a*b*c", "a-b-b-c")
    assert not matches("a*a", "a")
    assert not matches("a*b*c", "acb")
    assert not matches("a", "A")
    assert not matches("*a" * 60, "a" * 59 + "b")
    assert any_of(["x", "y*"])("yes")
    assert not any_of(["x", "y*"])("no")
    assert any_of(["*", "x"])("anything")


def test_two_valued_answers_agree_with_a_json_schema_validator() -> None:
    rng = random.Random(7)
    values: list[Any] = [
        0,
        1,
        -3,
        2.5,
        7,
        "a",
        "ab",
        "abc",
        "",
        True,
        False,
        None,
        [],
        [1],
        [1, 1],
        ["a", "b"],
        [1, "a"],
    ]
    values += [{}, {"a": 1}, {"a": 1, "b": "x"}, {"b": [1]}, [{"a": 1}]]

    def fragment(depth: int) -> dict[str, Any]:
        simple: list[dict[str, Any]] = [
            {"const": rng.choice(values)},
            {"enum": rng.sample(values, 3)},
            {"minimum": rng.randint(-3, 3)},
            {"exclusiveMaximum": rng.randint(-3, 8)},
            {"multipleOf": rng.choice([1, 2, 0.5])},
            {"minLength": rng.randint(0, 3)},
            {"pattern": rng.choice(["^a", "b$", "^[ab]*$"])},
            {"type": rng.choice(["integer", "number", "string", "array", "object", "boolean", "null"])},
            {"maxItems": 1},
            {"uniqueItems": True},
            {"required": ["a"]},
        ]
        if depth == 0 or rng.random() < 0.4:
            return rng.choice(simple)
        inner = [fragment(depth - 1) for _ in range(2)]
        nested: list[dict[str, Any]] = [
            {"not": inner[0]},
            {"allOf": inner},
            {"anyOf": inner},
            {"oneOf": inner},
            {"items": inner[0]},
            {"contains": inner[0]},
            {"properties": {"a": inner[0]}},
            {"if": inner[0], "then": inner[1]},
        ]
        return rng.choice(nested)

    decided = 0
    for _ in range(3000):
        schema, value = fragment(2), rng.choice(values)
        truth = judge(schema, value)
        if truth is not None:
            decided += 1
            assert truth is jsonschema.Draft202012Validator(schema).is_valid(value), (schema, value)
    assert decided > 500
