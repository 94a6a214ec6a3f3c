"""An id is rejected, never repaired."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard.errors import ConfigurationError
from agentguard.naming import check_id


@pytest.mark.parametrize("value", ["a", "run-1", "kb.search", "a/b:c_d", "x" * 128, "0"])
def test_a_usable_id_is_returned_as_it_is(value: str) -> None:
    assert check_id("tenant", value) is value


@pytest.mark.parametrize("kind", ["user", "session"])
def test_a_user_and_a_session_may_be_an_address(kind: str) -> None:
    assert check_id(kind, "ann+work@example.org") == "ann+work@example.org"


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\n", "\na", "x" * 129, "ä", "a\x00", "a@b", "a+b", "1٣", None, 7, b"a", ["a"]]
)
def test_anything_else_is_refused_by_kind(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="tenant") as caught:
        check_id("tenant", value)
    assert caught.value.code == "AG134"


@pytest.mark.parametrize("value", ["", "a b", "a\n", "x" * 129, "ä@b", None])
def test_a_user_is_not_anything_either(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="user"):
        check_id("user", value)


def test_the_message_shows_no_raw_character_of_a_hostile_id() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_id("tool", "\x1b[31m\u202e" + "x" * 500)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300
