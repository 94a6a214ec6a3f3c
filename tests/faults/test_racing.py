"""Eight processes, one budget; two processes, one approver's question each. Nobody gets more, nobody starves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from agentguard.domain.operations import Begin, GetApproval, ReadBudgets, Waiting
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing.conformance.scene import Scene, blocking
from tests.faults.crew import SCALE, Crew
from tests.faults.worker import meter, opening


def race(path: Path, count: int, limit: int, mutant: str | None = None) -> tuple[int, float, int]:
    store = SqliteStore(path)
    store.perform(opening("r1"))
    store.close()
    with Crew() as crew:
        for worker in range(8):
            more = {"break": mutant} if mutant else {}
            crew.add("race", path=str(path), worker=worker, count=count, limit=limit, **more)
        crew.go()
        results = crew.results()
    store = SqliteStore(path)
    try:
        held = next(line.held for line in store.perform(ReadBudgets((meter(limit),))))
    finally:
        store.close()
    return sum(r["granted"] for r in results), max(r["longest"] for r in results), held


@pytest.mark.slow
def test_eight_processes_get_exactly_the_limit_and_none_starves(tmp_path: Path) -> None:
    granted, longest, held = race(tmp_path / "r.db", 2500, 10_000)
    assert granted == 10_000 == held
    assert longest <= 2.0


@pytest.mark.parametrize("mutant", ["no check", "stale read"])
def test_the_race_notices_a_ledger_that_is_not_exact(tmp_path: Path, mutant: str) -> None:
    granted, _, held = race(tmp_path / "r.db", 60, 200, mutant)
    assert granted != 200 or held != 200


def ballot(path: Path, count: int, mutant: str | None = None) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    def opened(clock: Any) -> SqliteStore:
        del clock  # the voters use the machine's
        return SqliteStore(path)

    with Scene(opened, blocking) as scene:
        scene.open()
        ids = []
        for number in range(count):
            intent: Begin = scene.intent(f"c{number}", approval=scene.demand())
            answer = scene.do(intent)
            assert isinstance(answer, Waiting)
            ids.append(answer.request.id)
    with Crew() as crew:
        for name, kind in (("lea", "approve"), ("tom", "reject")):
            crew.add("vote", path=str(path), name=name, ids=ids, kind=kind, mutant=mutant)
        crew.go()
        results = crew.results()
    store = SqliteStore(path)
    try:
        deciders = []
        for id_ in ids:
            request = store.perform(GetApproval(id_))
            assert request is not None
            assert request.status in ("approved", "rejected")
            assert len(request.votes) == 1
            deciders.append(request.votes[0].by)
    finally:
        store.close()
    return results, ids, deciders


def winners(results: list[dict[str, Any]], id_: str) -> int:
    return sum(id_ in r["won"] for r in results)


def test_two_approvers_from_two_processes_have_one_winner_each_time(tmp_path: Path) -> None:
    (lea, tom), ids, deciders = ballot(tmp_path / "v.db", int(50 * max(SCALE, 1)))
    for id_, decider in zip(ids, deciders, strict=True):
        winner, loser, name = (lea, tom, "lea") if id_ in lea["won"] else (tom, lea, "tom")
        assert id_ in winner["won"]
        assert decider == name
        code, message = loser["lost"][id_]
        assert code == "AG632"
        assert name in message
    assert set(itertools.chain(lea["won"], tom["won"])) == set(ids)


def test_the_ballot_notices_a_vote_that_checks_and_then_sets(tmp_path: Path) -> None:
    results, ids, _ = ballot(tmp_path / "v.db", 5, "check then set")
    assert any(winners(results, id_) == 2 for id_ in ids)
