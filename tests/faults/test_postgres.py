"""The PostgreSQL store under load and faults: a server of our own is raced for, frozen, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentguard.audit.verifying import verify_chain
from agentguard.domain.operations import (
    Finished,
    GetApproval,
    GetRun,
    Proceed,
    ReadAudit,
    ReadBudgets,
    Waiting,
)
from agentguard.errors import StoreUnavailable
from agentguard.stores._postgres_wire import Line
from agentguard.stores.postgres import PostgresStore
from agentguard.testing.conformance.scene import Scene, blocking
from agentguard.testing.servers import PostgresServer
from tests.faults.crew import SCALE, Crew
from tests.faults.test_killing import KEYS, Violation, recover
from tests.faults.worker import beginning, finishing, meter, opening
from tests.servers import need_postgres

SCRIPT = Path(__file__).with_name("postgres_worker.py")
DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that syncs, as one in production does."""
    need_postgres()
    with PostgresServer() as started:
        yield started


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """An empty database: the workers use the usual schema."""
    name = f"d{time.monotonic_ns()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    yield psycopg.conninfo.make_conninfo(server.url, dbname=name)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


# --- 8 processes, one budget ---------------------------------------------------------------------


def race(url: str, count: int, limit: int, workers: int = 8, **more: Any) -> tuple[list[dict[str, Any]], int, int]:
    PostgresStore(url).close()
    with Crew(SCRIPT) as crew:
        for worker in range(workers):
            crew.add("race", url=url, worker=worker, count=count, limit=limit, **more)
        crew.go()
        results = crew.results(300)
    store = PostgresStore(url)
    try:
        (line,) = (x for x in store.perform(ReadBudgets((meter(limit),))) if x.dimension == "tool_calls")
        for worker in range(workers):
            run = store.perform(GetRun("acme", f"r{worker}"))
            assert run is not None
            records = store.perform(ReadAudit("acme", f"r{worker}", 0, 10**6))
            assert verify_chain(records, head=run.audit_head, count=run.audit_seq).ok
    finally:
        store.close()
    return results, line.used, line.held


def test_eight_processes_get_exactly_the_limit_and_none_starves(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    limit = int(1000 * max(SCALE, 1))
    results, used, held = race(url, limit // 5, limit)
    assert sum(r["granted"] for r in results) == limit == used
    assert held == 0
    assert max(r["longest"] for r in results) <= 2.0
    rate = limit / max(r["took"] for r in results)
    longest = max(r["longest"] for r in results)
    with capsys.disabled():
        print(f"\n8 processes, 3 budgets each, one shared: {rate:.0f} governed calls/s, longest wait {longest:.2f} s")  # noqa: T201


def test_the_race_notices_a_store_that_selects_and_then_updates(url: str) -> None:
    with contextlib.suppress(AssertionError):  # a chain with gaps is noticed as well
        results, used, held = race(url, 60, 100, 4, **{"break": "select then update", "one_trip": False})
        assert sum(r["granted"] for r in results) == used == 100
        assert held == 0
        pytest.fail("the mutant was not caught")


# --- a frozen server -----------------------------------------------------------------------------


def test_every_thread_is_answered_in_time_while_the_server_is_frozen(server: PostgresServer, url: str) -> None:
    store = PostgresStore(url, deadline_s=DEADLINE_S)
    store.perform(opening("r1"))
    admitted = store.perform(beginning("r1", "before"))
    assert isinstance(admitted, Proceed)
    waits: list[float] = []

    def ask(number: int) -> None:
        at = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.perform(beginning("r1", f"k{number}"))
        waits.append(time.monotonic() - at)

    with server.frozen():
        for _ in range(2):  # the second round finds no connection left and has to make one
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(waits) == 8
    assert max(waits) <= DEADLINE_S + 0.5
    healed(store, url, admitted)


def test_every_task_is_answered_in_time_and_the_loop_goes_on_while_the_server_is_frozen(
    server: PostgresServer, url: str
) -> None:
    store = PostgresStore(url, deadline_s=DEADLINE_S)
    store.perform(opening("r1"))

    async def beat(gaps: list[float]) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def ask(number: int) -> float:
        at = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.aperform(beginning("r1", f"k{number}"))
        return time.monotonic() - at

    async def freeze() -> tuple[Any, list[float], list[float]]:
        admitted = await store.aperform(beginning("r1", "before"))
        gaps: list[float] = []
        heart = asyncio.ensure_future(beat(gaps))
        server.freeze()
        try:
            waits = await asyncio.gather(*(ask(number) for number in range(20)))
            waits += await asyncio.gather(*(ask(number) for number in range(20)))
        finally:
            server.thaw()
            heart.cancel()
        return admitted, waits, gaps

    admitted, waits, gaps = asyncio.run(freeze())
    assert max(waits) <= DEADLINE_S + 0.5
    assert sorted(gaps)[-2] <= 0.25, "the loop was blocked"  # 0.1 s on a machine that does nothing else
    healed(store, url, admitted)


def healed(store: PostgresStore, url: str, admitted: Proceed) -> None:
    """The store works again at once, and what it said while it could not hear holds."""
    at = time.monotonic()
    while True:
        with contextlib.suppress(StoreUnavailable):
            assert isinstance(store.perform(finishing("r1", "before", admitted.fence)), Finished)
            break
        assert time.monotonic() - at <= 2
    assert time.monotonic() - at <= 2
    store.close()
    other = PostgresStore(url)
    # Calls that were refused may have begun all the same: then their holds stand until their leases end.
    lines = {line.dimension: line for line in other.perform(ReadBudgets((meter(10**9),)))}
    run = other.perform(GetRun("acme", "r1"))
    assert run is not None
    records = other.perform(ReadAudit("acme", "r1", 0, 1000))
    assert verify_chain(records, head=run.audit_head, count=run.audit_seq).ok
    begun = sum(b'"kind":"call.intent"' in record.line for record in records)
    assert (lines["tool_calls"].used, lines["tool_calls"].held) == (1, begun - 1)
    other.close()


def test_the_freeze_notices_a_client_without_a_deadline(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(url, deadline_s=0.3)
    store.perform(opening("r1"))
    monkeypatch.setattr(Line, "wait", psycopg.Connection.wait)
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(StoreUnavailable):
            store.perform(beginning("r1", "k"))
        answered.set()

    with server.frozen():
        thread = threading.Thread(target=ask)
        thread.start()
        assert not answered.wait(0.3 + 0.5), "the driver alone would have answered in time"
    thread.join(30)
    store.close()


# --- a server that is killed ---------------------------------------------------------------------


def reopening(url: str) -> Callable[[Any], PostgresStore]:
    return lambda clock: PostgresStore(url, clock=clock, deadline_s=30)


def prepare(url: str, workers: int) -> None:
    store = PostgresStore(url)
    for worker in range(workers):
        store.perform(opening(f"r{worker}"))
    store.close()


def test_what_was_acknowledged_survives_when_the_server_is_killed_again_and_again(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    kills = int(2 * max(SCALE, 1))
    prepare(url, 4)
    log = tmp_path / "log"
    watcher = PostgresStore(url)
    chance = random.Random(20261120)
    refused: list[float] = []
    with Crew(SCRIPT) as crew:
        for worker in range(3):
            crew.add("call", url=url, worker=worker, keys=KEYS, log=str(log), seed=chance.getrandbits(32))
        crew.go()
        for _ in range(kills):
            time.sleep(chance.uniform(0.3, 1.0))
            server.kill()
            at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                watcher.perform(beginning("r3", f"down{len(refused)}"))
            refused.append(time.monotonic() - at)
            server.start()
            at = time.monotonic()
            while True:
                with contextlib.suppress(StoreUnavailable):
                    watcher.perform(GetRun("acme", "r3"))
                    break
                assert time.monotonic() - at <= 2, "the store did not heal within 2 s"
            time.sleep(0.3)
    watcher.close()
    assert max(refused) <= 5.5
    assert recover(tmp_path, log, reopening(url)) > 0


def test_the_invariants_hold_after_workers_were_killed_at_any_instant(url: str, tmp_path: Path) -> None:
    rounds = int(os.environ.get("AGENTGUARD_FAULT_KILLS", str(int(4 * SCALE))))
    chance = random.Random(20261120)
    prepare(url, 4)
    log = tmp_path / "log"
    finished = 0
    for _ in range(rounds):
        with Crew(SCRIPT) as crew:
            for worker in range(4):
                crew.add("call", url=url, worker=worker, keys=KEYS, log=str(log), seed=chance.getrandbits(32))
            crew.go()
            time.sleep(chance.uniform(0.1, 0.5))
            # One of them at first while the others go on, then all.
            crew.workers[chance.randrange(4)].kill()
            time.sleep(chance.uniform(0.0, 0.1))
        finished = recover(tmp_path, log, reopening(url))
    assert finished > 0


def test_the_kill_experiment_notices_a_statement_that_is_replayed_and_an_end_that_is_lost(
    url: str, tmp_path: Path
) -> None:
    prepare(url, 1)
    log = tmp_path / "log"
    store = PostgresStore(url)
    admitted = store.perform(beginning("r0", "k1"))
    assert isinstance(admitted, Proceed)
    store.close()
    log.write_text("begun k1\neffect k1\neffect k1\n")
    with pytest.raises(Violation, match="I4"):
        recover(tmp_path, log, reopening(url))
    log.write_text("begun k1\neffect k1\nfinished k1\n")
    with pytest.raises(Violation, match="the acknowledged end of k1 is lost"):
        recover(tmp_path, log, reopening(url))


# --- two approvers -------------------------------------------------------------------------------


def ballot(url: str, count: int, mutant: str | None = None) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    with Scene(lambda _: PostgresStore(url), blocking) as scene:
        scene.open()
        ids = []
        for number in range(count):
            answer = scene.begin(f"c{number}", approval=scene.demand())
            assert isinstance(answer, Waiting)
            ids.append(answer.request.id)
    with Crew(SCRIPT) as crew:
        for name, kind in (("lea", "approve"), ("tom", "reject")):
            crew.add("vote", url=url, name=name, ids=ids, kind=kind, mutant=mutant)
        crew.go()
        results = crew.results()
    store = PostgresStore(url)
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


def test_two_approvers_from_two_processes_have_one_winner_each_time(url: str) -> None:
    (lea, tom), ids, deciders = ballot(url, int(40 * max(SCALE, 1)))
    for id_, decider in zip(ids, deciders, strict=True):
        winner, loser, name = (lea, tom, "lea") if id_ in lea["won"] else (tom, lea, "tom")
        assert id_ in winner["won"]
        assert decider == name
        code, message = loser["lost"][id_]
        assert code == "AG632"
        assert name in message
    assert set(itertools.chain(lea["won"], tom["won"])) == set(ids)


def test_the_ballot_notices_a_vote_that_checks_and_then_sets(url: str) -> None:
    results, ids, _ = ballot(url, 5, "check then set")
    assert any(sum(id_ in r["won"] for r in results) == 2 for id_ in ids)
