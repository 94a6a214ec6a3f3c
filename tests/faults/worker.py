"""What the processes of the experiments do; run as a script, one process each.

``python worker.py <job> <json>`` opens the store, writes ``ready``, waits for a line, works, and writes one JSON
object. ``mutant`` in the settings breaks the store in this process, to show that the experiment would notice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from agentguard.approval import routing
from agentguard.budget import ledger
from agentguard.domain.approvals import ApproverIdentity, Verdict
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Begin,
    Finish,
    GetApproval,
    OpenRun,
    Proceed,
    Reserve,
    Vote,
)
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import ApprovalError
from agentguard.stores import _sqlite_rows, _sqlite_schema
from agentguard.stores.sqlite import SqliteStore

ONE = (("tool_calls", 1),)


def meter(limit: int) -> Meter:
    return Meter("acme|everything", "tenant", "tenant acme", {"tool_calls": limit})


def opening(run_id: str) -> OpenRun:
    record = RunRecord(RunContext(run_id, "bot", "acme"), Contract(), (meter(10**9),), "running", (), 0, 0)
    return OpenRun(record, None, Event("run.opened", {"run": run_id}))


def beginning(run_id: str, key: str, limit: int = 10**9) -> Begin:
    event = Event("call.intent", {"key": key, "run": run_id}, b"{}")
    return Begin(
        "acme", run_id, "bot", None, "prod", key, key, "email.send", "write", "f" * 64, "p" * 64, None,
        (meter(limit),), ONE, 30 * NANO, event=event,
    )  # fmt: skip


def finishing(run_id: str, key: str, fence: int) -> Finish:
    event = Event("call.outcome", {"key": key, "run": run_id}, b"{}")
    return Finish("acme", run_id, key, fence, "succeeded", ONE, "{}", (), event)


def break_store(mutant: str | None) -> None:
    if mutant == "no check":  # a ledger that adds up and never says no
        ledger.shortfall = lambda *_: None  # type: ignore[assignment]
    elif mutant == "stale read":  # SELECT, then UPDATE: what was read once is believed for ever
        load = _sqlite_rows.SqliteTables.start

        def start(tables: Any) -> bool:
            return load(tables) if tables._version == -1 else False

        _sqlite_rows.SqliteTables.start = start  # type: ignore[method-assign]
    elif mutant == "no fork handlers":
        os.register_at_fork = lambda **_: None  # type: ignore[assignment]


def ready() -> None:
    print("ready", flush=True)  # noqa: T201  # this is how it talks to the test
    sys.stdin.readline()


def race(path: str, worker: int, count: int, limit: int) -> dict[str, Any]:
    """Reserve as often as possible from one budget."""
    store = SqliteStore(path, busy_s=60)
    ready()
    granted = refused = 0
    longest = 0.0
    began = time.monotonic()
    for number in range(count):
        at = time.monotonic()
        answer = store.perform(Reserve("acme", "r1", f"{worker}/{number}", (meter(limit),), ONE, 10**15))
        longest = max(longest, time.monotonic() - at)
        granted += answer.reason is None
        refused += answer.reason is not None
    took = time.monotonic() - began
    store.close()
    return {"granted": granted, "refused": refused, "longest": longest, "took": took}


def call(path: str, worker: int, keys: int, log: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Carry out governed calls until killed; the log says what was acknowledged and which effects happened."""
    store = SqliteStore(path, busy_s=60)
    chance = random.Random(seed)
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(*words: str) -> None:
        os.write(written, (" ".join(words) + "\n").encode())

    ready()
    run_id = f"r{worker}"
    while True:
        key = f"k{chance.randrange(keys)}"
        if mutant == "effect first":
            note("effect", key)
            os.kill(os.getpid(), signal.SIGKILL)
        admitted = store.perform(beginning(run_id, key))
        if not isinstance(admitted, Proceed):
            continue
        note("begun", key)
        if mutant == "effect twice":
            note("effect", key)
        note("effect", key)
        if store.perform(finishing(run_id, key, admitted.fence)).accepted:
            note("finished", key)


def fork(path: str, threads: int, children: int, calls: int) -> dict[str, Any]:
    """Fork again and again while threads are at work; parent, threads and children all use the store."""
    store = SqliteStore(path, busy_s=20)
    store.perform(opening("r1"))
    ready()
    stop = threading.Event()
    done: list[int] = []

    def work(name: str, limit: int | None) -> int:
        count = 0
        while (limit is None and not stop.is_set()) or (limit is not None and count < limit):
            key = f"{name}/{count}"
            admitted = store.perform(beginning("r1", key))
            assert isinstance(admitted, Proceed), admitted
            assert store.perform(finishing("r1", key, admitted.fence)).accepted
            count += 1
        done.append(count)
        return count

    crowd = [threading.Thread(target=work, args=(f"t{n}", None)) for n in range(threads)]
    for thread in crowd:
        thread.start()
    born = []
    for number in range(children):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if work(f"c{number}", calls) == calls else 1
            finally:
                os._exit(code)
        born.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in born]
    stop.set()
    for thread in crowd:
        thread.join()
    store.close()
    return {"codes": codes, "calls": sum(done) + children * calls}


def migrate(path: str, statements: list[str], crash: bool, mutant: str | None = None) -> dict[str, Any]:
    """Open the store with one more migration; die in the middle of it if told to."""
    _sqlite_schema.MIGRATIONS = (*_sqlite_schema.MIGRATIONS, tuple(statements))  # type: ignore[misc]
    connect = _sqlite_schema.connect

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def connecting(*args: Any, **settings: Any) -> Any:
        connection = connect(*args, **settings)
        connection.create_function("perhaps_die", 0, die if crash else lambda: 0)
        return connection

    def no_transaction(connection: Any, path: str) -> None:
        version = _sqlite_schema.check(connection, path)
        for number, steps in enumerate(_sqlite_schema.MIGRATIONS[version:], version + 1):
            for step in steps:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version={number}")

    _sqlite_schema.connect = connecting  # type: ignore[assignment]
    if mutant == "no transaction":
        _sqlite_schema.migrate = no_transaction  # type: ignore[assignment]
    ready()
    store = SqliteStore(path)
    runs = store.perform(opening(f"r{os.getpid()}")).record.context.run_id
    store.close()
    return {"opened": runs}


def vote(path: str, name: str, ids: list[str], kind: str, mutant: str | None = None) -> dict[str, Any]:
    """Decide every request as fast as possible."""
    store = SqliteStore(path, busy_s=60)
    if mutant == "check then set":
        seen = {id_: store.perform(GetApproval(id_)) for id_ in ids}
        _sqlite_rows.SqliteTables.approval = lambda _, id_: seen[id_]  # type: ignore[assignment, method-assign]
    ready()
    won, lost = [], {}
    for id_ in ids:
        try:
            store.perform(Vote(id_, Verdict(kind, ApproverIdentity(name, ("lead",)))))  # type: ignore[arg-type]
            won.append(id_)
        except ApprovalError as error:
            lost[id_] = [error.code, str(error)]
    store.close()
    return {"won": won, "lost": lost, "codes": routing.DECIDED}


def create(path: str) -> dict[str, Any]:
    """Open a store that may not exist yet, and use it."""
    ready()
    store = SqliteStore(path)
    store.perform(opening(f"r{os.getpid()}"))
    store.close()
    return {"opened": True}


JOBS = {"race": race, "call": call, "fork": fork, "migrate": migrate, "vote": vote, "create": create}

if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    break_store(settings.pop("break", None))
    print(json.dumps(JOBS[sys.argv[1]](**settings)), flush=True)  # noqa: T201
