"""What is special about the PostgreSQL store: round trips, schemas, deadlines, lost connections, forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from agentguard.audit.verifying import verify_chain
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Append,
    Begin,
    Describe,
    Finish,
    Finished,
    GetCall,
    GetRun,
    Kill,
    OpenRun,
    Proceed,
    ReadAudit,
    ReadBudgets,
    Settle,
    Turned,
    Waiting,
)
from agentguard.domain.runs import RunFilter, RunRecord
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import ConfigurationError, StoreUnavailable
from agentguard.stores import _postgres_schema, open_store, postgres
from agentguard.stores._postgres_fast import Beginning, Meters
from agentguard.stores.postgres import PostgresStore
from agentguard.testing.conformance.scene import Scene, blocking
from tests.servers import postgres_schema, postgres_url

__all__ = ["postgres_schema", "postgres_url"]

ONE = (("steps", 1), ("tool_calls", 1))
METERS = (
    Meter("run|r1", "run", "run r1", {"tool_calls": 1000}, None, 0.9),
    Meter("tenant|acme", "tenant", "tenant acme", {"tool_calls": 1000, "cost_usd": NANO}),
    Meter("user|ann", "user", "user ann per day", {"steps": 1000}, "day"),
)


def opening(run_id: str = "r1") -> OpenRun:
    record = RunRecord(RunContext(run_id, "bot", "acme"), Contract(), METERS, "running", (), 0, 0)
    return OpenRun(record, None, Event("run.opened", {"run": run_id}))


def beginning(key: str) -> Begin:
    event = Event("call.intent", {"key": key, "tool": "mail"}, b'{"to":"bob"}')
    return Begin(
        "acme", "r1", "bot", "ann", "prod", key, key, "mail", "write", "f" * 64, "p" * 64, 0, METERS, ONE, 60 * NANO,
        4, None, 50, event,
    )  # fmt: skip


def finishing(key: str, fence: int = 1) -> Finish:
    return Finish("acme", "r1", key, fence, "succeeded", ONE, "{}", (), Event("call.outcome", {"key": key}, b"{}"))


@pytest.fixture
def schema(postgres_schema: Callable[[], str]) -> str:
    return postgres_schema()


@pytest.fixture
def store(postgres_url: str, schema: str) -> Iterator[PostgresStore]:
    made = PostgresStore(postgres_url, schema=schema, deadline_s=5)
    made.perform(opening())
    yield made
    made.close()


@pytest.fixture
def outsider(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


class Wiretap:
    """Stands between store and server and counts round trips: how often the client speaks after the server has."""

    def __init__(self, url: str) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        self._server = (str(parts.get("host") or "127.0.0.1"), int(parts.get("port") or 5432))
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = [self._door]
        self.trips = 0
        self.url = psycopg.conninfo.make_conninfo(url, host="127.0.0.1", port=self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(self._server)
                self._ends += [client, server]
                heard = [True]
                threading.Thread(target=self._pump, args=(client, server, heard, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, heard, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, heard: list[bool], asking: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asking and heard[0]:
                    self.trips += 1
                heard[0] = not asking
                target.sendall(data)

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def wiretap(postgres_url: str) -> Iterator[Wiretap]:
    tap = Wiretap(postgres_url)
    yield tap
    tap.close()


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "awaiting"])
def test_a_governed_call_takes_two_round_trips_with_three_budgets_and_switches(
    wiretap: Wiretap, schema: str, asynchronous: bool
) -> None:
    store = PostgresStore(wiretap.url, schema=schema)
    store.perform(opening())
    for number in range(40):
        store.perform(Kill("user", "acme", f"u{number}", "why", "ops"))

    def do(operation: Any) -> Any:
        return asyncio.run(_await(store, operation)) if asynchronous else store.perform(operation)

    # The first call on a connection prepares its statements.
    assert isinstance(do(beginning("warm")), Proceed)
    assert do(finishing("warm")).accepted
    trips = []
    for number in range(5):
        before = wiretap.trips
        assert isinstance(do(beginning(f"c{number}")), Proceed)
        assert do(finishing(f"c{number}")).accepted
        trips.append(wiretap.trips - before)
    store.close()
    assert trips == [2] * 5


async def _await(store: PostgresStore, operation: Any) -> Any:
    return await store.aperform(operation)


def test_the_wiretap_notices_a_store_that_asks_more_often(wiretap: Wiretap, schema: str) -> None:
    store = PostgresStore(wiretap.url, schema=schema, one_trip=False)
    store.perform(opening())
    store.perform(beginning("warm"))
    before = wiretap.trips
    store.perform(beginning("c1"))
    store.close()
    assert wiretap.trips - before >= 2


def test_the_server_seals_the_records_that_this_program_would_seal(store: PostgresStore) -> None:
    events = (
        Event("step", {"kind": "retry", "text": 'a"\\\n\u2028é😀'}),
        Event("step", {"n": -1}),
    )
    admitted = store.perform(replace(beginning("c1"), event=Event("call.intent", {"a": None, "b": True}, b"\x00\xff")))
    assert isinstance(admitted, Proceed)
    assert [r.seq for r in admitted.records] == [2]
    done = store.perform(replace(finishing("c1"), more=events))
    run = store.perform(GetRun("acme", "r1"))
    assert run is not None
    records = store.perform(ReadAudit("acme", "r1"))
    assert verify_chain(records, head=run.audit_head, count=run.audit_seq).ok
    assert records[1:] == (*admitted.records, *done.records)


def test_a_record_that_the_server_sealed_otherwise_is_an_error(schema: str) -> None:
    fast = Beginning.of(beginning("c1"), schema, None, Meters())
    assert fast is not None
    with pytest.raises(StoreUnavailable, match="sealed an audit record otherwise"):
        fast.answer([(1, 2, "0" * 64, "1" * 64, None)])


def test_time_spent_waiting_for_people_is_free_in_one_trip_too(postgres_url: str, schema: str) -> None:
    with Scene(lambda clock: PostgresStore(postgres_url, schema=schema, clock=clock), blocking) as scene:
        began = scene.clock.now_ns()
        scene.open(working_seconds=100)
        demand = scene.demand()
        asked = scene.begin("c1", approval=demand)
        assert isinstance(asked, Waiting)
        scene.clock.advance(50)
        scene.do(scene.vote(asked.request.id))
        scene.start("c1", approval=demand)
        assert scene.start("c2").deadline_ns == began + 150 * NANO
        scene.clock.advance(99)
        scene.start("c3")
        scene.clock.advance(1)
        late = scene.begin("c4")
        assert isinstance(late, Turned)
        assert late.reason is StopReason.BUDGET_TIME


def test_use_of_another_amount_settles_in_one_trip_too(store: PostgresStore) -> None:
    store.perform(beginning("c1"))
    done = store.perform(replace(finishing("c1"), amounts=(("tool_calls", 1), ("cost_usd", 2**70))))
    assert [(s.dimension, s.used) for s in done.over] == [("cost_usd", 2**70)]
    store.perform(replace(beginning("c2"), meters=METERS[:1]))
    lines = {line.dimension: line for line in store.perform(ReadBudgets(METERS[1:2]))}
    assert (lines["cost_usd"].used, lines["tool_calls"].used, lines["tool_calls"].held) == (2**70, 1, 0)


def test_settlements_are_remembered_for_a_day_and_not_for_ever(
    postgres_url: str, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    with Scene(lambda clock: PostgresStore(postgres_url, schema=schema, clock=clock), blocking) as scene:
        scene.open()
        for number in range(5):
            scene.do(Settle("acme", "r1", f"m{number}", METERS[:1], ONE))
            scene.clock.advance(25 * 3600)
        left = outsider.execute(f'SELECT key FROM "{schema}".holds').fetchall()  # type: ignore[arg-type]
        assert left == [("4:acmem4",)]


def test_odd_operations_are_left_to_the_transitions(store: PostgresStore) -> None:
    odd = (*ONE, ("steps", 1))
    assert isinstance(store.perform(replace(beginning("c1"), amounts=odd)), Proceed)
    assert isinstance(store.perform(replace(beginning("c2"), meters=(METERS[0], METERS[0]))), Proceed)
    with pytest.raises(Exception, match="AG70|fact"):
        store.perform(replace(beginning("c3"), event=Event("call.intent", {"a b": 1})))
    with pytest.raises(Exception, match="AG70|fact"):
        store.perform(replace(finishing("c1"), event=Event("call.outcome", {"a b": 1})))
    assert store.perform(GetCall("acme", "c3")) is None
    assert isinstance(store.perform(replace(beginning("c4"), event=None)), Proceed)
    assert store.perform(replace(finishing("c4"), event=None)).records == ()


def test_many_runs_do_not_fill_the_memory_with_meters(schema: str) -> None:
    known = Meters()
    for number in range(3000):
        known.text((Meter(f"run|{number}", "run", "run"),))
    assert len(known._known) <= 1024


# --- settings and schemas ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"schema": "Robert"}, {"schema": 'a";drop'}, {"schema": "pg_x"}, {"schema": None}, {"schema": "x" * 49},
        {"deadline_s": 0}, {"deadline_s": True}, {"deadline_s": "5"}, {"max_connections": 0}, {"max_connections": 1.5},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        PostgresStore("postgresql://localhost/db", **settings)


def test_no_message_shows_the_password(postgres_url: str, schema: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}/db failed") as caught:
        open_store(f"postgresql://me:hunter2@127.0.0.1:{port}/db?connect_timeout=2")
    store = PostgresStore(psycopg.conninfo.make_conninfo(postgres_url, password="hunter2"), schema=schema)
    said = (str(caught.value), repr(store), str(store.perform(Describe())))
    store.close()
    assert not any("hunter2" in words for words in said)


def test_the_schema_can_be_named_in_the_address(postgres_url: str, schema: str) -> None:
    store = open_store(f"{postgres_url}?schema={schema}&application_name=x")
    store.perform(opening())
    store.close()
    again = PostgresStore(postgres_url, schema=schema)
    assert again.perform(GetRun("acme", "r1")) is not None
    facts = again.perform(Describe())
    again.close()
    assert (facts["kind"], facts["schema"]) == ("postgresql", f"{schema}, version {len(_postgres_schema.MIGRATIONS)}")


def test_two_that_create_the_schema_at_once_make_it_once(postgres_url: str, schema: str) -> None:
    made: list[PostgresStore] = []
    threads = [
        threading.Thread(target=lambda: made.append(PostgresStore(postgres_url, schema=schema))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    for number, store in enumerate(made):
        store.perform(opening(f"r{number}"))
        store.close()


def test_a_newer_schema_is_refused_and_not_touched(
    postgres_url: str, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    PostgresStore(postgres_url, schema=schema).close()
    outsider.execute(f'UPDATE "{schema}".meta SET version = 99')  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match="version 99, written by a newer agentguard"):
        PostgresStore(postgres_url, schema=schema)


def test_an_older_schema_is_upgraded_as_a_whole_or_not_at_all(
    postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PostgresStore(postgres_url, schema=schema).close()
    good = ("CREATE TABLE {s}.more (a int)",)
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*_postgres_schema.MIGRATIONS, (*good, "SELECT nonsense")))
    with pytest.raises(StoreUnavailable, match="nonsense"):
        PostgresStore(postgres_url, schema=schema)
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*_postgres_schema.MIGRATIONS[:-1], good))
    store = PostgresStore(postgres_url, schema=schema)
    store.perform(opening())
    assert store.perform(Describe())["schema"] == f"{schema}, version {len(_postgres_schema.MIGRATIONS)}"
    store.close()


@pytest.mark.parametrize("table", ["orders (n int)", "meta (name text)", "meta (version text)"])
def test_a_schema_of_another_program_is_refused(
    postgres_url: str, schema: str, outsider: psycopg.Connection[Any], table: str
) -> None:
    outsider.execute(f'CREATE SCHEMA "{schema}"')  # type: ignore[arg-type]
    outsider.execute(f'CREATE TABLE "{schema}".{table}')  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match="another program"):
        PostgresStore(postgres_url, schema=schema)


def test_a_schema_that_is_gone_grants_nothing_and_is_not_made_anew(
    store: PostgresStore, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    outsider.execute(f'DROP SCHEMA "{schema}" CASCADE')  # type: ignore[arg-type]
    for operation in (beginning("c1"), opening("r2"), GetRun("acme", "r1")):
        with pytest.raises(StoreUnavailable, match="are gone or were upgraded"):
            store.perform(operation)


def test_a_database_in_another_encoding_is_refused(
    postgres_url: str, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    name = f"latin_{schema}"
    outsider.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")  # type: ignore[arg-type]
    try:
        with pytest.raises(StoreUnavailable, match="encoded in LATIN1"):
            PostgresStore(psycopg.conninfo.make_conninfo(postgres_url, dbname=name))
    finally:
        outsider.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def test_an_old_server_is_refused(postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_OLDEST", 10**6)
    with pytest.raises(StoreUnavailable, match="14 or newer is needed"):
        PostgresStore(postgres_url, schema=schema)


def test_a_standby_is_refused(postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_FACTS", postgres._FACTS.replace("pg_is_in_recovery()", "true"))
    with pytest.raises(StoreUnavailable, match="read-only standby"):
        PostgresStore(postgres_url, schema=schema)


def test_a_connection_that_cannot_be_set_up_is_not_used(
    postgres_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(postgres_url, schema=schema)
    store._lines.forked()
    monkeypatch.setattr(postgres, "_TUNE", "SELECT nonsense($1, $2, $3)")
    with pytest.raises(StoreUnavailable, match="nonsense"):
        store.perform(Describe())
    with pytest.raises(StoreUnavailable, match="nonsense"):
        asyncio.run(_await(store, Describe()))
    assert (store._lines._count, store._async_lines._count) == (0, 0)
    store.close()


def test_commits_are_synced_although_the_server_would_not(postgres_url: str, schema: str) -> None:
    url = psycopg.conninfo.make_conninfo(postgres_url, options="-c synchronous_commit=off")
    store = PostgresStore(url, schema=schema)
    assert store.perform(Describe())["synchronous_commit"] == "on"
    store.close()


# --- deadlines, lost connections, errors ---------------------------------------------------------


def locked_run(connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute("BEGIN")
    connection.execute(f"SELECT 1 FROM \"{schema}\".runs WHERE run_id = 'r1' FOR UPDATE")  # type: ignore[arg-type]


def test_who_waits_for_a_lock_is_told_in_time(
    postgres_url: str, store: PostgresStore, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    impatient = PostgresStore(postgres_url, schema=schema, deadline_s=0.5, max_connections=1)
    locked_run(outsider, schema)
    found: list[str] = []

    def ask(key: str) -> None:
        at = time.monotonic()
        try:
            impatient.perform(beginning(key))
        except StoreUnavailable as error:
            assert time.monotonic() - at < 1
            found.append(str(error))

    threads = [threading.Thread(target=ask, args=(f"c{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def crowd() -> list[Any]:
        work = [impatient.aperform(beginning(f"a{n}")) for n in range(3)]
        return list(await asyncio.gather(*work, return_exceptions=True))

    found += map(str, asyncio.run(crowd()))
    outsider.execute("ROLLBACK")
    assert len(found) == 6
    assert 1 <= sum("raise max_connections" in words for words in found) <= 4, found
    assert all("Nothing was changed" in w or "did not answer" in w or "max_connections" in w for w in found)
    assert isinstance(impatient.perform(beginning("later")), Proceed)
    assert isinstance(asyncio.run(_await(impatient, beginning("later still"))), Proceed)
    impatient.close()


def test_waiting_tasks_take_over_connections_of_those_who_are_done(
    postgres_url: str, store: PostgresStore, schema: str
) -> None:
    narrow = PostgresStore(postgres_url, schema=schema, max_connections=2)

    async def crowd() -> int:
        tasks = [
            asyncio.ensure_future(narrow.aperform(replace(beginning(f"c{n}"), concurrency=None))) for n in range(30)
        ]
        await asyncio.sleep(0)
        tasks[7].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        return sum(isinstance(answer, Proceed) for answer in answers)

    admitted = asyncio.run(crowd())
    narrow.close()
    # Whoever stopped listening has its call begun all the same.
    assert admitted == 29
    assert sum(store.perform(GetCall("acme", f"c{n}")) is not None for n in range(30)) == 30


def test_a_connection_that_the_server_closed_while_it_was_idle_is_noticed(
    store: PostgresStore, outsider: psycopg.Connection[Any]
) -> None:
    asyncio.run(_await(store, beginning("c0")))
    store.perform(beginning("c1"))
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentguard'"
    outsider.execute(kill)
    while outsider.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = 'agentguard'").fetchone():
        pass
    assert isinstance(store.perform(beginning("c2")), Proceed)
    assert isinstance(asyncio.run(_await(store, beginning("c3"))), Proceed)


def cut_while_it_waits(
    store: PostgresStore, schema: str, outsider: psycopg.Connection[Any], operation: Any, asynchronous: bool = False
) -> tuple[Any, BaseException | None]:
    """What is answered when the connection is lost in the middle of an operation."""
    got: list[Any] = []

    def ask() -> None:
        try:
            answer = asyncio.run(_await(store, operation)) if asynchronous else store.perform(operation)
            got.append((answer, None))
        except BaseException as error:
            got.append((None, error))

    locked_run(outsider, schema)
    thread = threading.Thread(target=ask)
    thread.start()
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    until = time.monotonic() + 10
    while not outsider.execute(cut, (f'%"{schema}"%',)).fetchone() and time.monotonic() < until:
        outsider.execute("SELECT pg_stat_clear_snapshot()")
    outsider.execute("ROLLBACK")
    thread.join()
    return got[0]


def test_a_start_of_unknown_fate_is_never_repeated(
    store: PostgresStore, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    _, error = cut_while_it_waits(store, schema, outsider, beginning("c1"))
    assert isinstance(error, StoreUnavailable)
    assert "may have happened all the same" in str(error)
    assert store.perform(GetCall("acme", "c1")) is None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "awaiting"])
def test_an_end_of_unknown_fate_is_repeated_because_that_changes_nothing(
    store: PostgresStore, schema: str, outsider: psycopg.Connection[Any], asynchronous: bool
) -> None:
    store.perform(beginning("c1"))
    answer, error = cut_while_it_waits(store, schema, outsider, finishing("c1"), asynchronous)
    assert error is None
    assert isinstance(answer, Finished)
    assert answer.accepted
    lines = {line.dimension: line for line in store.perform(ReadBudgets(METERS[:1]))}
    assert (lines["tool_calls"].used, lines["tool_calls"].held) == (1, 0)


def test_what_was_only_read_when_the_connection_was_lost_is_done_again(
    store: PostgresStore, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    answer, error = cut_while_it_waits(store, schema, outsider, Append("acme", "r1", Event("step", {"kind": "plan"})))
    assert error is None
    assert answer.records[0].seq == 2


def test_a_process_that_stops_in_the_middle_does_not_keep_others_waiting(
    postgres_url: str,
    store: PostgresStore,
    schema: str,
    outsider: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = PostgresStore(postgres_url, schema=schema, deadline_s=1)
    real = postgres.perform
    held = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE %s"

    def stopped(tx: Any, op: Any) -> Any:
        answer = real(tx, op)
        until = time.monotonic() + 10
        while outsider.execute(held, (f'%"{schema}"%',)).fetchone():
            assert time.monotonic() < until, "its locks were never taken away"
        return answer

    monkeypatch.setattr(postgres, "perform", stopped)
    at = time.monotonic()
    with pytest.raises(
        StoreUnavailable, match="lost before anything was changed, or taken away because this process stopped"
    ):
        slow.perform(Append("acme", "r1", Event("step", {"kind": "plan"})))
    assert time.monotonic() - at < 5
    assert isinstance(store.perform(beginning("c1")), Proceed)
    run = store.perform(GetRun("acme", "r1"))
    assert run is not None
    assert run.audit_seq == 2
    slow.close()


def test_a_value_that_cannot_be_kept_is_refused(store: PostgresStore) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be kept there. Nothing was changed.$"):
        store.perform(replace(beginning("c1"), tool="a\0b"))
    with pytest.raises(StoreUnavailable, match="cannot be kept there. Nothing was changed.$"):
        store.perform(replace(beginning("c1"), lease_ns=2**63))
    assert isinstance(store.perform(beginning("c1")), Proceed)


def test_a_closed_store_refuses(store: PostgresStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        store.perform(beginning("c1"))
    with pytest.raises(StoreUnavailable, match="is closed"):
        asyncio.run(_await(store, beginning("c1")))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "awaiting"])
def test_a_server_that_takes_connections_and_says_nothing_is_given_up_in_time(
    postgres_url: str, schema: str, asynchronous: bool
) -> None:
    store = PostgresStore(postgres_url, schema=schema, deadline_s=0.5)
    store._lines.close()  # so that a connection has to be made
    store._lines._closed = False
    with socket.create_server(("127.0.0.1", 0)) as mute:
        store._url = f"postgresql://me@127.0.0.1:{mute.getsockname()[1]}/db"
        at = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0.5 s"):
            asyncio.run(_await(store, beginning("c1"))) if asynchronous else store.perform(beginning("c1"))
        assert time.monotonic() - at < 1
    store.close()


def test_an_operation_that_asks_for_ever_more_rows_is_given_up(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(1000))

    def greedy(tx: Any, op: Any) -> Any:
        return tx.account(f"more{next(numbers)}")

    monkeypatch.setattr(postgres, "perform", greedy)
    with pytest.raises(StoreUnavailable, match="asked for more and more rows"):
        store.perform(Append("acme", "r1", Event("step", {"kind": "plan"})))
    with pytest.raises(StoreUnavailable, match="asked for more and more rows"):
        store.perform(GetRun("acme", "r1"))


def test_a_forked_child_has_connections_of_its_own(store: PostgresStore) -> None:
    store.perform(beginning("c0"))
    asyncio.run(_await(store, beginning("c1")))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            first = store.perform(beginning("child"))
            second = asyncio.run(_await(store, finishing("child")))
            code = 0 if isinstance(first, Proceed) and second.accepted else 2
        finally:
            os._exit(code)
    assert store.perform(finishing("c0")).accepted
    assert asyncio.run(_await(store, finishing("c1"))).accepted
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.perform(GetCall("acme", "child")) is not None


def test_after_a_fork_no_connection_of_the_parent_is_used_or_closed(store: PostgresStore) -> None:
    store.perform(beginning("c0"))
    asyncio.run(_await(store, beginning("c1")))
    theirs = [*store._lines._idle, *store._async_lines._idle]
    postgres._forked(weakref.ref(store))
    assert isinstance(store.perform(beginning("c2")), Proceed)
    assert isinstance(asyncio.run(_await(store, beginning("c3"))), Proceed)
    ours = [*store._lines._idle, *store._async_lines._idle]
    assert theirs
    assert not any(line.closed or line in ours for line in theirs)
    for line in theirs:
        line.pgconn.finish()


def test_an_operation_never_sees_rows_of_another_tenant(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "perform", lambda tx, op: tx.run("umbrella", "r1"))
    with pytest.raises(RuntimeError, match="of tenant acme asked for run r1 of umbrella"):
        store.perform(GetRun("acme", "r1"))


def test_an_operation_never_looks_over_rows_it_has_changed(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(tx: Any, op: Any) -> Any:
        tx.put_run(tx.run("acme", "r1"))
        return tx.runs(RunFilter())

    monkeypatch.setattr(postgres, "perform", careless)
    with pytest.raises(RuntimeError, match="asked for runs after it had changed one"):
        store.perform(Append("acme", "r1", Event("step", {"kind": "plan"})))


def test_a_store_that_is_forgotten_closes_its_connections(
    postgres_url: str, schema: str, outsider: psycopg.Connection[Any]
) -> None:
    store = PostgresStore(psycopg.conninfo.make_conninfo(postgres_url), schema=schema)
    pid = store._lines.take(time.monotonic() + 5)
    backend = pid.pgconn.backend_pid
    store._lines.give(pid)
    del store, pid
    gc.collect()
    until = time.monotonic() + 5
    while outsider.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (backend,)).fetchone():
        assert time.monotonic() < until


def test_turned_away_calls_leave_the_budget_as_it_was(store: PostgresStore) -> None:
    small = (Meter("run|r1", "run", "run r1", {"tool_calls": 1}),)
    assert isinstance(store.perform(replace(beginning("c1"), meters=small)), Proceed)
    assert isinstance(store.perform(replace(beginning("c2"), meters=small)), Turned)
    (line,) = [x for x in store.perform(ReadBudgets(small)) if x.dimension == "tool_calls"]
    assert (line.used, line.held) == (0, 1)
