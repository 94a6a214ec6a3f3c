"""Every model interface, sync and async, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.adapters.support import Shop, Talk

KINDS = [(api, colour) for api in ("chat", "responses", "messages") for colour in ("sync", "async")]


@pytest.fixture
def speak() -> Iterator[Callable[[str, str], Talk]]:
    """Makes talks and closes them."""
    made: list[Talk] = []

    def make(api: str, colour: str) -> Talk:
        made.append(Talk(api, colour))
        return made[-1]

    yield make
    for talk in made:
        talk.close()


@pytest.fixture(params=KINDS, ids="-".join)
def talk(request: pytest.FixtureRequest, speak: Callable[[str, str], Talk]) -> Talk:
    return speak(*request.param)


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.gateway.close()
