"""What the processes of the experiments on PostgreSQL do; run as a script, one process each.

As ``worker.py``, with the address of a server instead of a file. ``break`` in the settings breaks the store in this
process, to show that the experiment would notice.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import replace
from typing import Any

from worker import ONE, beginning, finishing, meter, opening, ready

from agentguard.domain.approvals import ApproverIdentity, Verdict
from agentguard.domain.operations import GetApproval, Proceed, Vote
from agentguard.domain.usage import Meter
from agentguard.errors import ApprovalError, StoreUnavailable
from agentguard.stores import _postgres_rows
from agentguard.stores.postgres import PostgresStore


def break_store(mutant: str | None) -> None:
    if mutant == "select then update":
        locking = _postgres_rows.Wants.statements

        def statements(wants: Any, schema: str, now: int | None, *, lock: bool) -> Any:
            return locking(wants, schema, now, lock=False)

        _postgres_rows.Wants.statements = statements  # type: ignore[method-assign, assignment]
        trusting = _postgres_rows.PostgresTables.__init__

        def believe(tables: Any, *given: Any) -> None:
            trusting(tables, *given)
            tables._locked = frozenset(tables._runs)

        _postgres_rows.PostgresTables.__init__ = believe  # type: ignore[method-assign]


def race(url: str, worker: int, count: int, limit: int, one_trip: bool = True) -> dict[str, Any]:
    """Make as many governed calls as three budgets permit, one of them shared by all."""
    store = PostgresStore(url, one_trip=one_trip)
    run_id = f"r{worker}"
    mine = Meter(f"run|{run_id}", "run", f"run {run_id}", {"tool_calls": count}, None, 0.99)
    today = Meter("user|ann", "user", "user ann", {"tool_calls": 10**6}, "day")
    meters = (mine, meter(limit), today)
    opened = opening(run_id)
    store.perform(replace(opened, record=replace(opened.record, meters=meters)))
    ready()
    granted = refused = 0
    longest = 0.0
    began = ended = time.monotonic()
    for number in range(count):
        key = f"{worker}/{number}"
        at = time.monotonic()
        admitted = store.perform(replace(beginning(run_id, key), meters=meters))
        between = time.monotonic()
        if isinstance(admitted, Proceed):
            granted += 1
            store.perform(finishing(run_id, key, admitted.fence))
            ended = time.monotonic()
            longest = max(longest, ended - between)
        else:
            refused += 1
        longest = max(longest, between - at)
    store.close()
    return {"granted": granted, "refused": refused, "longest": longest, "took": ended - began}


def call(url: str, worker: int, keys: int, log: str, seed: int, seconds: float = 3600) -> dict[str, Any]:
    """Carry out governed calls until killed, or for so many seconds, through outages of the server.

    The log says what was acknowledged and which effects happened.
    """
    store = PostgresStore(url, deadline_s=5)
    chance = random.Random(seed)
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(*words: str) -> None:
        os.write(written, (" ".join(words) + "\n").encode())

    ready()
    run_id = f"r{worker}"
    until = time.monotonic() + seconds
    longest = 0.0
    while time.monotonic() < until:
        key = f"k{chance.randrange(keys)}"
        at = time.monotonic()
        try:
            admitted = store.perform(beginning(run_id, key))
        except StoreUnavailable:
            longest = max(longest, time.monotonic() - at)
            time.sleep(0.01)
            continue
        if not isinstance(admitted, Proceed):
            continue
        note("begun", key)
        note("effect", key)
        try:
            if store.perform(finishing(run_id, key, admitted.fence)).accepted:
                note("finished", key)
        except StoreUnavailable:
            continue
    store.close()
    return {"longest": longest}


def vote(url: str, name: str, ids: list[str], kind: str, mutant: str | None = None) -> dict[str, Any]:
    """Decide every request as fast as possible."""
    store = PostgresStore(url)
    if mutant == "check then set":
        seen = {id_: store.perform(GetApproval(id_)) for id_ in ids}
        _postgres_rows.PostgresTables.approval = lambda _, id_: seen[id_]  # type: ignore[assignment, method-assign]
    ready()
    won, lost = [], {}
    for id_ in ids:
        try:
            store.perform(Vote(id_, Verdict(kind, ApproverIdentity(name, ("lead",)))))  # type: ignore[arg-type]
            won.append(id_)
        except ApprovalError as error:
            lost[id_] = [error.code, str(error)]
    store.close()
    return {"won": won, "lost": lost, "unit": ONE}


JOBS = {"race": race, "call": call, "vote": vote}

if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    break_store(settings.pop("break", None))
    print(json.dumps(JOBS[sys.argv[1]](**settings)), flush=True)  # noqa: T201
