"""Nouns with the fast constructor are the frozen dataclasses they look like."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from agentguard.domain.constructing import maker, quick


@quick
@dataclass(frozen=True, slots=True)
class Noun:
    name: str
    size: int = 1
    parts: list[str] = field(default_factory=list)


make = maker(Noun)


def test_the_function_makes_what_the_class_makes() -> None:
    assert make("a", 2, ["x"]) == Noun("a", 2, ["x"]) == Noun(name="a", size=2, parts=["x"])
    assert type(make("a")) is Noun
    assert make("a") == Noun("a", 1, [])


def test_defaults_that_are_made_are_made_anew() -> None:
    assert make("a").parts is not make("a").parts
    assert Noun("a").parts is not Noun("a").parts


@pytest.mark.parametrize("noun", [make("a"), Noun("a")])
def test_it_stays_frozen_and_can_be_copied(noun: Noun) -> None:
    with pytest.raises(FrozenInstanceError):
        noun.size = 3  # type: ignore[misc]
    assert replace(noun, size=3) == Noun("a", 3)
    assert pickle.loads(pickle.dumps(noun)) == noun


def test_a_missing_field_is_noticed() -> None:
    with pytest.raises(TypeError):
        make()  # type: ignore[call-arg]
