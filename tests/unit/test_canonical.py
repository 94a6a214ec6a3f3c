"""RFC 8785 by its own examples, and the tagged form in which nothing that differs looks alike."""

from __future__ import annotations

import enum
import json
import math
import struct
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.canonical import MAX_DEPTH, NotCanonical, digest, dumps, joined, sha256, tagged
from tests.naming import shown as shown_id

# RFC 8785, appendix B: IEEE 754 bits and the number they are written as.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_are_written_as_the_standard_says(bits: str, text: str) -> None:
    assert dumps(struct.unpack(">d", bytes.fromhex(bits))[0]).decode() == text


def test_the_example_of_the_standard() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    wanted = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert dumps(value).decode() == wanted


def test_keys_are_sorted_by_their_utf_16_code_units() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(dumps(dict.fromkeys(keys)))) == [
        "\r",
        "1",
        "\u0080",
        "\u00f6",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def _same(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


@given(json_values)
def test_what_is_written_can_be_read_again(value: Any) -> None:
    read = json.loads(dumps(value))
    assert dumps(read) == dumps(value)
    assert read == value or any(isinstance(leaf, float) for leaf in _leaves(value))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


@given(json_values, json_values)
def test_tagged_forms_are_equal_only_for_equal_values(one: Any, two: Any) -> None:
    assert (tagged(one) == tagged(two)) == _same(one, two)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_its_value(value: float) -> None:
    assert float(dumps(value)) == value


def test_equal_looking_values_differ_when_tagged() -> None:
    assert (
        len({tagged(v) for v in (1, 1.0, True, "1", None, [1], {"1": 1}, "i1", "true", 0, 0.0, False, "", [], {})})
        == 15
    )
    assert tagged(0.0) == tagged(-0.0)


def test_large_integers_are_written_in_full() -> None:
    assert dumps(2**53 + 1) == b"9007199254740993"
    assert dumps(-(10**40)) == b"-1" + b"0" * 40


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Metre(float):
    pass


def test_subclasses_are_their_plain_values() -> None:
    assert dumps([Colour.RED, Level.LOW, Metre(1.5)]) == b'["red",1,1.5]'
    assert tagged([Colour.RED, Level.LOW, Metre(1.5)]) == tagged(["red", 1, 1.5])
    assert dumps(MappingProxyType({"a": (1, 2)})) == b'{"a":[1,2]}'


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        {None: 1},
        {1, 2},
        b"x",
        object(),
        Metre("nan"),
        [object()],
    ],
    ids=shown_id,
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    for write in (dumps, tagged, digest):
        with pytest.raises(NotCanonical):
            write(value)


def test_depth_has_an_end() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    dumps(value)
    with pytest.raises(NotCanonical):
        dumps({"a": value})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotCanonical):
        dumps(loop)


def test_digests_are_sha_256_of_the_canonical_form() -> None:
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) == sha256(b'{"a":2,"b":1}')
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_different_parts_never_make_the_same_key(one: list[str], two: list[str]) -> None:
    assert (joined(*one) == joined(*two)) == (one == two)
