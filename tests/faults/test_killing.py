"""``kill -9`` at any instant: what was acknowledged is there, and the invariants hold after reopening.

I1 no effect without an earlier durable intent; I2 every intent gets exactly one terminal record; I3 what is used
and held is what was recorded, and nothing stays held; I4 at most one effect per key.
"""

from __future__ import annotations

import collections
import json
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from agentguard.audit.verifying import verify_chain
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import (
    GetCall,
    ListCalls,
    ListRuns,
    ReadAudit,
    ReadBudgets,
    ResolveCall,
    Unresolved,
)
from agentguard.domain.runs import RunFilter
from agentguard.domain.usage import NANO
from agentguard.protocols import Clock, Store
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import FakeClock
from tests.faults.crew import SCALE, Crew
from tests.faults.worker import beginning, meter, opening

WORKERS = 4
KEYS = 4000


class Violation(AssertionError):
    """An invariant does not hold."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def trail(store: Store, run_id: str) -> list[AuditRecord]:
    return list(store.perform(ReadAudit("acme", run_id, 0, 10**6)))


def facts(records: Iterable[AuditRecord], kind: str) -> list[str]:
    lines = (json.loads(r.line) for r in records)
    return [line["facts"]["key"] for line in lines if line["kind"] == kind]


def refusals(records: Iterable[AuditRecord]) -> list[str]:
    lines = (json.loads(r.line) for r in records)
    return [x["facts"]["key"] for x in lines if x["kind"] == "call.resolved" and x["facts"]["status"] == "refused"]


def recover(path: Path, log: Path, reopen: Callable[[Clock], Store] | None = None) -> int:
    """Reopen, check the invariants, resolve what was lost, check again; the number of finished calls."""
    said: dict[str, list[str]] = collections.defaultdict(list)
    for line in log.read_text().splitlines() if log.exists() else ():
        word, key = line.split()
        said[word].append(key)
    # Far enough in the future for every lease to have ended.
    clock = FakeClock(time.time_ns() + 3600 * NANO)
    at = time.monotonic()
    store = SqliteStore(path, clock=clock) if reopen is None else reopen(clock)
    require(time.monotonic() - at <= 2, "reopening took more than 2 s")
    try:
        runs = store.perform(ListRuns(RunFilter(limit=10**6)))
        intents = [key for run in runs for key in facts(trail(store, run.context.run_id), "call.intent")]
        known = {c.key: c for run in runs for c in store.perform(ListCalls("acme", run.context.run_id))}
        require(set(said["effect"]) <= set(intents), "I1: an effect without an intent")
        require(max(collections.Counter(said["effect"]).values(), default=0) <= 1, "I4: two effects of one key")
        # A start that was found never to have happened frees its key for another.
        freed = collections.Counter(key for run in runs for key in refusals(trail(store, run.context.run_id)))
        twice = [key for key, count in collections.Counter(intents).items() if count > 1 + freed[key]]
        require(not twice, f"{twice} have two intents")
        require(set(said["begun"]) <= set(known), "an acknowledged start is lost")
        for key in said["finished"]:
            require(known[key].status == "succeeded", f"the acknowledged end of {key} is lost")
        for key, found in known.items():
            if found.status == "running":
                answer = store.perform(beginning(found.run_id, key))
                require(isinstance(answer, Unresolved), f"a lost call was answered with {answer}")
                happened = key in said["effect"]
                store.perform(ResolveCall("acme", key, "succeeded" if happened else "refused", None, "probe", ""))
        lines = {line.dimension: line for line in store.perform(ReadBudgets((meter(10**9),)))}
        charged = sum(c.status == "succeeded" and c.outcome is not None for c in known.values())
        require(lines["tool_calls"].held == 0, "I3: something is held for ever")
        require(lines["tool_calls"].used == charged, f"I3: {lines['tool_calls'].used} used, {charged} charged")
        terminals: list[str] = []
        for run in store.perform(ListRuns(RunFilter(limit=10**6))):
            records = trail(store, run.context.run_id)
            report = verify_chain(records, head=run.audit_head, count=run.audit_seq)
            require(report.ok, f"the chain of {run.context.run_id} does not verify: {report.problems}")
            terminals += facts(records, "call.outcome")
        require(sorted(terminals) == sorted(intents), "I2: an intent without exactly one terminal record")
        for key in intents:
            call = store.perform(GetCall("acme", key))
            require(call is not None and call.status in ("succeeded", "refused"), f"{key} has no end")
    finally:
        store.close()
    return len(set(said["finished"]))


def prepare(path: Path, workers: int) -> None:
    store = SqliteStore(path)
    for worker in range(workers):
        store.perform(opening(f"r{worker}"))
    store.close()


def test_nothing_acknowledged_is_lost_and_the_invariants_hold_after_every_kill(tmp_path: Path) -> None:
    path, log = tmp_path / "k.db", tmp_path / "log"
    rounds = int(os.environ.get("AGENTGUARD_FAULT_KILLS", str(int(10 * SCALE))))
    chance = random.Random(20261120)
    finished = 0
    for number in range(rounds):
        # A file for a few rounds, so that recovery of a recovered file is tried as well.
        if number % 3 == 0:
            path, log = tmp_path / f"k{number}.db", tmp_path / f"log{number}"
            prepare(path, WORKERS)
        with Crew() as crew:
            for worker in range(WORKERS):
                crew.add("call", path=str(path), worker=worker, keys=KEYS, log=str(log), seed=chance.getrandbits(32))
            crew.go()
            time.sleep(chance.uniform(0.05, 0.5))
            # One of them at first while the others go on, then all.
            crew.workers[chance.randrange(WORKERS)].kill()
            time.sleep(chance.uniform(0.0, 0.1))
        finished = max(finished, recover(path, log))
    assert finished > 0


@pytest.mark.parametrize("mutant", ["effect first", "effect twice"])
def test_the_kill_experiment_notices_effects_without_intent_and_repeated_ones(tmp_path: Path, mutant: str) -> None:
    path, log = tmp_path / "k.db", tmp_path / "log"
    prepare(path, 2)
    with Crew() as crew:
        for worker in range(2):
            crew.add("call", path=str(path), worker=worker, keys=KEYS, log=str(log), seed=worker, mutant=mutant)
        crew.go()
        deadline = time.monotonic() + 30
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            os.sched_yield()
    with pytest.raises(Violation, match="I1" if mutant == "effect first" else "I4"):
        recover(path, log)


def power_cut(tmp_path: Path, sizes: list[tuple[int, int]], wal: bytes, database: bytes, cut: int) -> None:
    """Keep the first ``cut`` bytes of the log, as if the power had gone; every call synced before must be there."""
    folder = tmp_path / f"cut{cut}"
    folder.mkdir()
    (folder / "p.db").write_bytes(database)
    (folder / "p.db-wal").write_bytes(wal[:cut])
    store = SqliteStore(folder / "p.db")
    try:
        run = store.perform(ListRuns(RunFilter()))
        calls = {c.key for c in store.perform(ListCalls("acme", "r0"))}
        expected = {f"k{number}" for number, size in sizes if size <= cut}
        require(expected <= calls, f"calls {sorted(expected - calls)} were acknowledged and are lost")
        if run:
            report = verify_chain(trail(store, "r0"), head=run[0].audit_head, count=run[0].audit_seq)
            require(report.ok, str(report.problems))
    finally:
        store.close()


def written(tmp_path: Path, calls: int, *, early: bool) -> tuple[list[tuple[int, int]], bytes, bytes]:
    """Acknowledge calls one by one; with each the size that the log had when it was acknowledged."""
    path = tmp_path / "p.db"
    prepare(path, 1)
    log = tmp_path / "p.db-wal"
    store = SqliteStore(path)
    sizes = []
    try:
        for number in range(calls):
            before = log.stat().st_size if log.exists() else 0
            store.perform(beginning("r0", f"k{number}"))
            sizes.append((number, before if early else log.stat().st_size))
        return sizes, log.read_bytes(), path.read_bytes()
    finally:
        store.close()


def test_what_was_acknowledged_survives_a_log_cut_at_any_byte(tmp_path: Path) -> None:
    sizes, wal, database = written(tmp_path, 40, early=False)
    chance = random.Random(7)
    for cut in {chance.randrange(len(wal) + 1) for _ in range(int(25 * SCALE))}:
        power_cut(tmp_path, sizes, wal, database, cut)


def test_the_power_cut_notices_an_acknowledgement_before_the_commit(tmp_path: Path) -> None:
    sizes, wal, database = written(tmp_path, 20, early=True)
    with pytest.raises(Violation, match="acknowledged"):
        power_cut(tmp_path, sizes, wal, database, sizes[-1][1])
