"""Fork under load: parent, threads and children all go on, and nothing is lost or counted twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agentguard.audit.verifying import verify_chain
from agentguard.domain.operations import GetRun, ReadAudit, ReadBudgets
from agentguard.stores.sqlite import SqliteStore
from tests.faults.crew import SCALE, Crew
from tests.faults.worker import meter


def fork_under_load(path: Path, threads: int, children: int, timeout: float, mutant: str | None = None) -> None:
    with Crew() as crew:
        more = {"break": mutant} if mutant else {}
        crew.add("fork", path=str(path), threads=threads, children=children, calls=10, **more)
        crew.go()
        (result,) = crew.results(timeout)
    assert result["codes"] == [0] * children
    store = SqliteStore(path)
    try:
        (line,) = store.perform(ReadBudgets((meter(10**9),)))
        assert (line.used, line.held) == (result["calls"], 0)
        run = store.perform(GetRun("acme", "r1"))
        assert run is not None
        records = store.perform(ReadAudit("acme", "r1", 0, 10**6))
        assert verify_chain(records, head=run.audit_head, count=run.audit_seq).ok
        assert len(records) == 1 + 2 * result["calls"]
    finally:
        store.close()


def test_threads_and_forked_children_share_the_file(tmp_path: Path) -> None:
    fork_under_load(tmp_path / "f.db", 32, int(8 * max(SCALE, 1)), 120)


def test_the_fork_experiment_notices_a_connection_that_is_carried_over(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        fork_under_load(tmp_path / "f.db", 16, 6, 8, "no fork handlers")
