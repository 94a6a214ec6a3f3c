"""Results are checked against what the tool declares and written as JSON, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel, Field, field_serializer

from agentguard.tools.schema import OutputInvalid
from agentguard.tools.tool import Tool, define
from tests.naming import shown as shown_id


class Item(BaseModel):
    sku: str
    at: datetime | None = None


class Aliased(BaseModel):
    inner: int = Field(alias="outer")


class Exploding(BaseModel):
    x: int

    @field_serializer("x")
    def write(self, value: int) -> str:
        raise RuntimeError(f"secret {value}")


class Measured(BaseModel):
    x: float
    y: Any = None


@dataclass
class Point:
    x: int


def returning(hint: Any, **settings: Any) -> Tool:
    def body() -> Any: ...

    if hint is ...:
        del body.__annotations__["return"]
    else:
        body.__annotations__["return"] = hint
    return define(body, settings, name="body")


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (int, 5, "5"),
        (float, 5, "5.0"),
        (str, "NaN and Infinity", '"NaN and Infinity"'),
        (None, None, "null"),
        (dict[str, int], {"a": 1}, '{"a":1}'),
        (dict, {"a": [1, None]}, '{"a":[1,null]}'),
        (Item, Item(sku="a"), '{"sku":"a","at":null}'),
        (list[Item], [Item(sku="a")], '[{"sku":"a","at":null}]'),
        (Aliased, Aliased(outer=1), '{"outer":1}'),
        (Point, Point(1), '{"x":1}'),
        (Item | None, None, "null"),
        (datetime, datetime(2024, 1, 1, tzinfo=UTC), '"2024-01-01T00:00:00Z"'),
        (Any, {"a": Point(1)}, '{"a":{"x":1}}'),
        (..., [1, "a"], '[1,"a"]'),
        (object, "x", '"x"'),
    ],
    ids=shown_id,
)
def test_results_are_written_and_read_back(hint: Any, value: Any, text: str) -> None:
    made = returning(hint)
    output = made.check_output(value)
    assert output.value == value
    assert output.json.decode() == text
    if hint not in (Any, ...):
        assert made.revive(output.json) == value


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        *((int, True), (int, "5"), (int, 5.0), (str, 5), (str, None), (None, 5), (float, "1"), (bool, 1)),
        *((dict[str, int], {"a": "1"}), (dict[str, int], {1: 1}), (list[int], (1,)), (Item, {"sku": 5}), (Item, None)),
        *((list[Item], [Item(sku="a"), 5]), (float, float("nan")), (Any, float("inf")), (Any, {"a": [float("nan")]})),
        *((Any, object()), (Any, "\ud800"), (str, "\ud800"), (..., {1, object()}), (Any, lambda: 1)),
        *(
            (Exploding, Exploding(x=1)),
            (Measured, Measured(x=float("nan"))),
            (Measured, Measured(x=0, y=[float("inf")])),
        ),
    ],
    ids=lambda value: shown_id(value, 30),
)
def test_results_that_do_not_fit_are_refused(hint: Any, value: Any) -> None:
    with pytest.raises(OutputInvalid) as caught:
        returning(hint).check_output(value)
    assert "secret" not in caught.value.message
    assert caught.value.detail.isprintable()


def test_a_mapping_that_fits_the_model_becomes_the_model() -> None:
    assert returning(Item).check_output({"sku": "a"}).value == Item(sku="a")
    assert returning(Measured).check_output({"x": 1.5, "y": 2.5}).json == b'{"x":1.5,"y":2.5}'


def test_values_that_contain_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(OutputInvalid):
        returning(...).check_output(loop)


def test_a_coroutine_as_result_is_closed_and_explained() -> None:
    async def forgotten() -> None: ...

    with pytest.raises(OutputInvalid, match="async def"):
        returning(...).check_output(forgotten())


def test_the_schema_of_the_result_comes_from_the_hint() -> None:
    assert returning(dict[str, int]).spec.output_schema == {
        "additionalProperties": {"type": "integer"},
        "type": "object",
    }
    for hint in (..., Any, object, NoReturn):
        assert returning(hint).spec.output_schema is None
    assert returning(None).spec.output_schema == {"type": "null"}


def test_a_given_schema_replaces_the_hint() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    made = returning(dict[str, Any], output_schema=schema)
    assert made.check_output({"n": 1}) == ({"n": 1}, b'{"n":1}')
    assert made.check_output(type("M", (BaseModel,), {"__annotations__": {"n": int}})(n=2)).json == b'{"n":2}'
    assert made.revive(b'{"n":1}') == {"n": 1}
    assert made.spec.output_schema == schema
    wrong: Any
    for wrong in ({"n": 0}, {"n": "1"}, {}, [], None, {"n": float("nan")}):
        with pytest.raises(OutputInvalid):
            made.check_output(wrong)


def test_what_no_longer_fits_the_type_comes_back_as_json() -> None:
    made = returning(Item)
    assert made.revive('{"sku":"a","at":"2024-01-01T00:00:00Z"}').at == datetime(2024, 1, 1, tzinfo=UTC)
    assert made.revive(json.dumps({"sku": 5})) == {"sku": 5}
    assert made.revive('"[redacted]"') == "[redacted]"


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "object", "required": ["a", "b"]}, {"a": 1}, "it must have 'b', found"),
        ({"type": "object", "properties": {"a": {"maximum": 3}}}, {"a": 4}, "must be at most 3, found"),
    ],
)
def test_a_result_that_does_not_fit_a_given_schema_says_what_is_missing(
    schema: dict[str, Any], value: Any, said: str
) -> None:
    made = returning(dict[str, Any], output_schema=schema)
    with pytest.raises(OutputInvalid) as caught:
        made.check_output(value)
    assert said in caught.value.detail
