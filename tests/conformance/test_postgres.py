"""The PostgreSQL store keeps the contract, in both colours, with calls in one round trip and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agentguard.protocols import Clock, Store
from agentguard.stores.postgres import PostgresStore
from agentguard.testing import CONFORMANCE, Check, MakeStore, awaiting, blocking
from tests.servers import empty_schema, postgres_schema, postgres_url

__all__ = ["empty_schema", "postgres_schema", "postgres_url"]


@pytest.fixture
def make_store(postgres_url: str, empty_schema: Callable[[], str], one_trip: bool) -> Iterator[MakeStore]:
    opened: list[Store] = []

    def make(clock: Clock) -> Store:
        opened.append(PostgresStore(postgres_url, schema=empty_schema(), clock=clock, one_trip=one_trip))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.mark.parametrize(
    ("colour", "one_trip"),
    [(blocking, True), (awaiting, True), (blocking, False)],
    ids=["blocking", "awaiting", "blocking in three trips"],
)
@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_store_keeps_the_contract(make_store: MakeStore, check: Check, colour: Callable[..., object]) -> None:
    check(make_store, colour)
