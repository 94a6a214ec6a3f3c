"""A schema upgrade that dies half-way leaves the old schema or the new one; opening at once is safe."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agentguard.domain.operations import ListRuns
from agentguard.domain.runs import RunFilter
from agentguard.errors import StoreUnavailable
from agentguard.stores import _sqlite_schema
from agentguard.stores.sqlite import SqliteStore
from tests.faults.crew import Crew
from tests.faults.worker import opening

STEPS = [
    "CREATE TABLE extra (a INTEGER)",
    "ALTER TABLE calls ADD COLUMN extra TEXT",
    "UPDATE runs SET repeats = perhaps_die()",
    "CREATE TABLE more (a INTEGER)",
]


def crash_and_go_on(path: Path, mutant: str | None = None) -> dict[str, Any]:
    store = SqliteStore(path)
    store.perform(opening("r0"))
    store.close()
    with Crew() as crew:
        dying = crew.add("migrate", path=str(path), statements=STEPS, crash=True, mutant=mutant)
        crew.go()
        dying.communicate(timeout=60)
        assert dying.returncode == -9
    with Crew() as crew:
        crew.add("migrate", path=str(path), statements=STEPS, crash=False, mutant=mutant)
        crew.go()
        return crew.results()[0]


def test_an_interrupted_migration_is_rolled_back_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    assert crash_and_go_on(path)["opened"]
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA user_version").fetchone() == (len(_sqlite_schema.MIGRATIONS) + 1,)
        assert database.execute("SELECT count(*) FROM extra").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    finally:
        database.close()


def test_the_experiment_notices_a_migration_without_a_transaction(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="already exists"):
        crash_and_go_on(tmp_path / "m.db", "no transaction")


def test_an_older_library_refuses_politely_while_and_after_a_newer_one_upgrades(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    old = SqliteStore(path)
    old.perform(opening("r0"))
    with Crew() as crew:
        crew.add("migrate", path=str(path), statements=STEPS, crash=False)
        crew.go()
        crew.results()
    for operation in (opening("r1"), ListRuns(RunFilter())):
        with pytest.raises(StoreUnavailable, match="newer agentguard"):
            old.perform(operation)
    old.close()
    with pytest.raises(StoreUnavailable, match="Upgrade agentguard"):
        SqliteStore(path)


def test_eight_processes_may_create_the_same_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with Crew() as crew:
        for _ in range(8):
            crew.add("create", path=str(path))
        crew.go()
        crew.results()
    store = SqliteStore(path)
    try:
        assert len(store.perform(ListRuns(RunFilter()))) == 8
    finally:
        store.close()
