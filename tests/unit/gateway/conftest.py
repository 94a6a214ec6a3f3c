"""One scene per store and colour: a tool that leaves a trace, see ``tests.battery.scene``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.battery.scene import Scene


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["blocking", "awaiting"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scene(kind: str, colour: str, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(kind, colour, tmp_path)
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Scene]:
    """A scene in memory and sync code, for what does not depend on either."""
    made = Scene("memory", "blocking", tmp_path)
    yield made
    made.close()
