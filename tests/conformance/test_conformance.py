"""Every store keeps the contract, in both colours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentguard.protocols import Clock, Store
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import CONFORMANCE, Check, MakeStore, awaiting, blocking, run_conformance


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    numbers = itertools.count()
    opened: list[Store] = []

    def make(clock: Clock) -> Store:
        if request.param == "memory":
            store: Store = MemoryStore(clock)
        else:
            store = SqliteStore(tmp_path / f"{next(numbers)}.db", clock=clock)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.mark.parametrize("colour", [blocking, awaiting], ids=["blocking", "awaiting"])
@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_store_keeps_the_contract(make_store: MakeStore, check: Check, colour: Callable[..., object]) -> None:
    check(make_store, colour)


def test_the_whole_suite_runs_without_a_test_framework() -> None:
    assert run_conformance(MemoryStore) == 2 * len(CONFORMANCE)


def test_a_failing_check_is_named() -> None:
    class Forgetful(MemoryStore):
        def perform(self, operation):  # type: ignore[no-untyped-def]
            answer = super().perform(operation)
            return None if type(operation).__name__ == "GetCall" else answer

    with pytest.raises(AssertionError, match=r"check_call_is_remembered \(blocking\)"):
        run_conformance(Forgetful)
