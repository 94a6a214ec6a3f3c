"""The SQLite store: what it does to its file, and what it says when the file does not do its part."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Append,
    Describe,
    GetCall,
    GetRun,
    Kill,
    ListRuns,
    OpenRun,
    PutState,
    ReadAudit,
    Restore,
)
from agentguard.domain.runs import RunFilter
from agentguard.domain.usage import Meter
from agentguard.errors import AuditError, StoreConflict, StoreUnavailable
from agentguard.stores import _sqlite_rows
from agentguard.stores import _sqlite_schema as schema
from agentguard.stores import sqlite as module
from agentguard.stores._sqlite_lock import WriterLock
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import FakeClock
from agentguard.testing.conformance.scene import Scene, blocking


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


@pytest.fixture
def scene(path: Path) -> Iterator[Scene]:
    with Scene(lambda clock: SqliteStore(path, clock=clock), blocking) as made:
        yield made


def kill(number: int) -> Kill:
    return Kill("run", "acme", f"r{number}", "why", "olga")


def test_the_file_and_its_lock_are_for_the_owner_only(path: Path) -> None:
    SqliteStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == 0o600


def test_the_settings_that_durability_rests_on_are_in_force(path: Path) -> None:
    store = SqliteStore(path)
    connection = store._writing.connection
    assert connection is not None

    def pragma(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert (pragma("journal_mode"), pragma("synchronous")) == ("wal", 2)
    assert (pragma("foreign_keys"), pragma("trusted_schema"), pragma("mmap_size")) == (1, 0, 0)
    facts = store.perform(Describe())
    assert (facts["kind"], facts["durable"], facts["path"]) == ("sqlite", True, str(path))
    assert facts["schema"] == len(schema.MIGRATIONS)
    store.close()


def test_everything_is_there_after_reopening(path: Path) -> None:
    with Scene(lambda clock: SqliteStore(path, clock=clock), blocking) as scene:
        scene.open()
        scene.finish(scene.start())
        before = (scene.run(), scene.chain())
    with Scene(lambda clock: SqliteStore(path, clock=clock), blocking) as scene:
        assert (scene.run(), scene.chain()) == before


def test_two_stores_of_one_process_share_a_file(path: Path) -> None:
    one, two = SqliteStore(path), SqliteStore(path)
    failures: list[BaseException] = []

    def work(store: SqliteStore, name: str) -> None:
        try:
            for number in range(30):
                store.perform(Kill("run", name, str(number), "why", "olga"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(s, n)) for n, s in (("a", one), ("b", two), ("c", one), ("d", two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for store in (one, two):
        facts = store.perform(Kill("run", "a", "0", "other", "paul"))
        assert facts.by == "olga", "each sees what the other has written"
        store.close()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("here.db")
    monkeypatch.chdir("/")
    store.perform(kill(1))
    store.close()
    assert (tmp_path / "here.db").exists()


# --- what cannot be opened -----------------------------------------------------------------------------


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="directory .*/none does not exist"):
        SqliteStore(tmp_path / "none" / "s.db")


def test_a_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="is a directory"):
        SqliteStore(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_kept(path: Path) -> None:
    path.write_bytes(b"notes " * 400)
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        SqliteStore(path)
    assert path.read_bytes() == b"notes " * 400


def test_the_database_of_another_program_is_refused_and_kept(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE notes (a)")
    with pytest.raises(StoreUnavailable, match="another program"):
        SqliteStore(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


def test_a_newer_schema_is_refused_and_kept(path: Path) -> None:
    SqliteStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version=99")
    with pytest.raises(StoreUnavailable, match=r"schema version 99.*Upgrade agentguard"):
        SqliteStore(path)
    with contextlib.closing(sqlite3.connect(path)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "file_system", lambda folder: "nfs4")
    with pytest.raises(StoreUnavailable, match=r"network file system \(nfs4\)"):
        SqliteStore(path)
    assert not path.exists()


def test_the_kind_of_a_file_system_is_that_of_its_deepest_mount(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:40 / /srv/team\\040files rw - nfs4 host:/x rw\n"
        "31 22 0:41 / /srv/team\\040files/local rw - xfs /dev/b rw\n"
        "broken line\n"
        "too short - nfs\n"
    )
    kinds = {
        folder: schema.file_system(folder, str(table))
        for folder in (
            "/",
            "/home/me",
            "/srv/team files",
            "/srv/team files/a",
            "/srv/team files/local",
            "/srv/team filesX",
        )
    }
    assert kinds == {
        "/": "ext4",
        "/home/me": "ext4",
        "/srv/team files": "nfs4",
        "/srv/team files/a": "nfs4",
        "/srv/team files/local": "xfs",
        "/srv/team filesX": "ext4",
    }
    assert schema.file_system("/", str(tmp_path / "none")) == ""


def test_a_file_that_cannot_be_created_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(schema.os, "open", refuse)
    with pytest.raises(StoreUnavailable, match="cannot be created: Permission denied"):
        SqliteStore(path)


def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema.sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreUnavailable, match="too old"):
        SqliteStore(path)


def test_a_file_without_a_log_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            return super().execute("SELECT 'delete'" if "journal_mode" in sql else sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(schema.sqlite3, "connect", lambda *a, **s: connect(*a, factory=Stubborn, **s))
    with pytest.raises(StoreUnavailable, match=r"write-ahead log.*delete"):
        SqliteStore(path)


# --- what goes wrong later -----------------------------------------------------------------------------


def test_a_full_disk_fails_the_operation_and_leaves_nothing_half_done(scene: Scene) -> None:
    scene.open()
    connection = scene.store._writing.connection  # type: ignore[attr-defined]
    before = scene.run()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreUnavailable, match="disk or the quota is full"):
        for number in range(100):
            scene.do(Append("acme", "r1", Event("step", {"n": number}, b"x" * 9000)))
    connection.execute("PRAGMA max_page_count=1000000")
    scene.chain()
    assert scene.run().audit_seq >= before.audit_seq
    scene.start()
    scene.chain()


def test_a_read_only_connection_says_so(scene: Scene) -> None:
    scene.store._writing.connection.execute("PRAGMA query_only=ON")  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable, match="may not be written"):
        scene.open()
    assert scene.do(ListRuns(RunFilter())) == ()


def test_a_stopped_process_that_holds_the_lock_is_waited_for_until_the_deadline(path: Path) -> None:
    store = SqliteStore(path, busy_s=0.05)
    other = os.open(f"{path}.lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(StoreUnavailable, match=r"locked by another process for more than 0.05 s"):
            store.perform(kill(1))
        assert store.perform(ListRuns(RunFilter())) == (), "reading does not wait for writers"
    finally:
        os.close(other)
    assert store.perform(kill(1)).by == "olga"
    store.close()


def test_another_program_that_ignores_the_lock_is_waited_for_until_the_deadline(path: Path) -> None:
    store = SqliteStore(path, busy_s=0.05)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="holds the file without the writer lock"):
            store.perform(kill(1))
        other.execute("ROLLBACK")
    assert store.perform(kill(1)).by == "olga"
    store.close()


def test_a_lock_file_that_cannot_be_opened_fails_the_operation(path: Path) -> None:
    store = SqliteStore(path)
    os.unlink(f"{path}.lock")
    os.mkdir(f"{path}.lock")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.perform(kill(1))
    os.rmdir(f"{path}.lock")
    assert store.perform(kill(1)).by == "olga"
    store.close()


def test_text_that_cannot_be_stored_fails_alone(scene: Scene) -> None:
    scene.open()

    async def together() -> list[Any]:
        store = scene.store
        bad = Kill("run", "acme", "\ud800", "why", "olga")
        return await asyncio.gather(
            *(store.aperform(op) for op in (kill(1), bad, kill(2), bad, kill(3))), return_exceptions=True
        )

    answers = asyncio.run(together())
    assert [isinstance(a, StoreUnavailable) for a in answers] == [False, True, False, True, False]
    assert "cannot keep this" in str(answers[1])
    assert answers[1] is not answers[3]


def test_a_number_beyond_64_bits_fails_alone(scene: Scene) -> None:
    scene.open()
    with pytest.raises(StoreUnavailable, match="cannot keep this"):
        scene.begin(lease_ns=2**80)
    assert scene.do(GetCall("acme", "r1/c1")) is None
    scene.start()
    scene.chain()


def test_a_commit_that_fails_is_an_error_for_all_and_changes_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.open()
    desk = scene.store._writing  # type: ignore[attr-defined]

    class Failing:
        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def execute(self, sql: str, *values: Any) -> Any:
            if sql == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return self._real.execute(sql, *values)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    real, desk.connection = desk.connection, Failing(desk.connection)
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        scene.start()
    desk.connection = real
    assert scene.do(GetCall("acme", "r1/c1")) is None
    scene.start()
    scene.chain()


def test_an_interrupt_in_the_middle_of_a_group_is_raised_and_the_store_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.open()

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scene.start()
    scene.start()
    scene.chain()


def test_an_interrupt_right_after_the_commit_does_not_undo_it(scene: Scene) -> None:
    scene.open()
    store: Any = scene.store
    desk = store._writing

    class Interrupting:
        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def execute(self, sql: str, *values: Any) -> Any:
            answer = self._real.execute(sql, *values)
            if sql == "COMMIT":
                raise KeyboardInterrupt
            return answer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    real, desk.connection = desk.connection, Interrupting(desk.connection)
    with pytest.raises(KeyboardInterrupt):
        scene.start()
    desk.connection = real
    call = scene.do(GetCall("acme", "r1/c1"))
    assert call is not None
    assert call.status == "running"


# --- several at once -----------------------------------------------------------------------------------


def test_callers_that_come_together_share_one_transaction(scene: Scene) -> None:
    scene.open()
    store: Any = scene.store
    commits: list[str] = []
    store._writing.connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    async def together() -> None:
        await asyncio.gather(*(store.aperform(kill(number)) for number in range(64)))

    asyncio.run(together())
    store._writing.connection.set_trace_callback(None)
    assert len(commits) <= 4


def test_one_failing_operation_of_a_group_is_rolled_back_alone(scene: Scene) -> None:
    first = scene.open()

    async def together() -> list[Any]:
        store = scene.store
        again = OpenRun(first.record, None, Event("run.opened", {}))
        wrong = PutState("acme", "r1", "k", 1, 5, "bot")
        right = PutState("acme", "r1", "k", 1, 0, "bot")
        return await asyncio.gather(
            *(store.aperform(op) for op in (again, wrong, right, again)), return_exceptions=True
        )

    answers = asyncio.run(together())
    assert [type(a) for a in answers[:2]] == [StoreConflict, StoreConflict]
    assert answers[2].version == 1
    assert len(scene.chain()) == 2


def test_a_query_inside_an_operation_sees_what_the_operation_has_put(scene: Scene) -> None:
    """Concurrency caps and lapsed holds are asked of the file while a group is not written yet."""
    meter = Meter("run|r1", "run", "run r1", {"tool_calls": 2})
    scene.open(meters=(meter,))

    async def together() -> list[Any]:
        calls = [scene.intent(f"c{n}", meters=(meter,), concurrency=5) for n in range(4)]
        return await asyncio.gather(*(scene.store.aperform(call) for call in calls))

    answers = asyncio.run(together())
    assert [type(a).__name__ for a in answers] == ["Proceed", "Proceed", "Turned", "Turned"]
    scene.clock.advance(60)
    lost = scene.begin("c0", meters=(meter,), rerun=True)
    assert type(lost).__name__ == "Proceed"
    assert scene.line(meter).held <= 2
    scene.chain()


def test_an_error_after_a_query_rolls_back_what_the_operation_had_written(scene: Scene) -> None:
    meter = Meter("run|r1", "run", "run r1", {"tool_calls": 2})
    scene.open(meters=(meter,))
    scene.start("c0", meters=(meter,), rerun=True)
    scene.start("c1", meters=(meter,))
    scene.clock.advance(60)
    # Releases its own old hold, is short all the same, asks the file for lapsed holds, and then cannot be recorded.
    odd = Event("step", {"x": 1.5})  # type: ignore[dict-item]
    broken = scene.intent("c0", meters=(meter,), rerun=True, amounts=(("tool_calls", 2),), event=odd)
    with pytest.raises(AuditError, match="facts are strings"):
        scene.do(broken)
    assert scene.line(meter).held == 2
    call = scene.do(GetCall("acme", "r1/c0"))
    assert call is not None
    assert (call.status, call.fence) == ("running", 1)
    good = scene.intent("c0", meters=(meter,), rerun=True, amounts=(("tool_calls", 2),))
    assert type(scene.do(good)).__name__ == "Proceed"
    assert scene.line(meter).held == 2
    scene.chain()


def test_a_switch_among_hundreds_is_found_after_reopening(path: Path) -> None:
    with Scene(lambda clock: SqliteStore(path, clock=clock), blocking) as scene:
        scene.open()
        for number in range(300):
            scene.do(Kill("run", "acme", f"z{number}", "old", "olga"))
        scene.do(Kill("user", "acme", "ann", "why", "olga"))
    with Scene(lambda clock: SqliteStore(path, clock=clock), blocking) as scene:
        assert type(scene.begin()).__name__ == "Turned"
        scene.do(Restore("user", "acme", "ann", "olga"))
        scene.start()


def test_many_rows_do_not_stay_in_memory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_rows, "_KNOWN_ROWS", 8)
    scene.open()
    for number in range(20):
        scene.finish(scene.start(f"c{number}"), f"c{number}")
    tables = scene.store._writing.tables  # type: ignore[attr-defined]
    assert sum(len(shelf.known) for shelf in tables._shelves) < 16
    assert scene.run().audit_seq == 41
    scene.chain()


# --- ends ----------------------------------------------------------------------------------------------


def test_a_store_that_is_forgotten_closes_itself(path: Path) -> None:
    store = SqliteStore(path)
    store.perform(kill(1))
    del store
    gc.collect()
    assert not Path(f"{path}-wal").exists()


def test_closing_while_another_holds_the_lock_ends_after_the_deadline(path: Path) -> None:
    store = SqliteStore(path, busy_s=0.05)
    with WriterLockHeld(path):
        store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.perform(GetRun("acme", "r1"))


class WriterLockHeld:
    def __init__(self, path: Path) -> None:
        self.lock = WriterLock(f"{path}.lock")

    def __enter__(self) -> None:
        assert self.lock.acquire(1)

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        self.lock.discard()


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise RuntimeError", "asyncio.run(store.aperform(kill(2)))"])
def test_the_interpreter_ends_without_hanging_and_with_everything_written(path: Path, ending: str) -> None:
    program = f"""
import asyncio, sys
from agentguard.domain.operations import Kill
from agentguard.stores import open_store
def kill(number): return Kill("run", "acme", str(number), "why", "olga")
store = open_store({f"sqlite:///{path}"!r})
store.perform(kill(0))
asyncio.run(store.aperform(kill(1)))
{ending}
"""
    subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert not Path(f"{path}-wal").exists(), "the store was not closed"
    store = SqliteStore(path)
    assert store.perform(Kill("run", "acme", "1", "other", "paul")).by == "olga"
    store.close()


def test_a_loop_that_is_gone_loses_no_operation(path: Path) -> None:
    store = SqliteStore(path, clock=FakeClock())
    loop = asyncio.new_event_loop()
    with WriterLockHeld(path):
        task = loop.create_task(store.aperform(kill(1)))
        loop.run_until_complete(asyncio.sleep(0))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()
    assert store.perform(kill(1)).by == "olga"
    store.close()


def test_records_are_read_in_a_snapshot_of_their_own(scene: Scene) -> None:
    scene.open()
    assert len(scene.do(ReadAudit("acme", "r1"))) == 1
    scene.do(Append("acme", "r1", Event("step", {})))
    assert len(scene.do(ReadAudit("acme", "r1"))) == 2


# --- fork ----------------------------------------------------------------------------------------------


def test_no_connection_is_open_while_a_process_forks(scene: Scene) -> None:
    scene.open()
    store: Any = scene.store
    store._before_fork()
    assert store._writing.connection is None
    assert store._reading.connection is None
    assert store._writing.taken.locked(), "and none is opened before the fork has happened"
    store._after_fork_in_parent()
    scene.start()
    scene.chain()


def test_a_child_opens_connections_and_locks_of_its_own(scene: Scene) -> None:
    scene.open()
    store: Any = scene.store
    before = store._lock
    store._before_fork()
    store._after_fork_in_child()
    assert store._lock is not before
    scene.start()
    scene.chain()


@pytest.mark.parametrize("trouble", ["busy", "broken"])
def test_a_fork_in_the_wrong_moment_leaves_the_parent_working_and_the_child_refusing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    scene.open()
    store: Any = scene.store
    monkeypatch.setattr(module, "_FORK_WAIT_S", 0.01)

    def fork() -> None:
        if trouble == "busy":
            with store._reading.taken:
                store._before_fork()
        else:
            with monkeypatch.context() as patch:
                patch.setattr(store._writing, "close", lambda: (_ for _ in ()).throw(sqlite3.OperationalError("no")))
                store._before_fork()

    fork()
    store._after_fork_in_parent()
    scene.start()
    fork()
    left = store._writing.connection
    store._after_fork_in_child()
    for operation in (kill(1), ListRuns(RunFilter())):
        with pytest.raises(StoreUnavailable, match="forked while"):
            store.perform(operation)
    found = module._left_behind.pop()
    assert found[0] is left, "the child must neither close nor collect what its parent uses"
    for connection in found:
        if connection is not None:
            connection.close()


def test_a_store_that_is_gone_does_not_hear_of_forks() -> None:
    def gone() -> None:
        return None

    def fail(store: SqliteStore) -> None:
        raise AssertionError(store)

    module._at_fork(gone, fail)  # type: ignore[arg-type]
    module._AtExit(gone)()  # type: ignore[arg-type]


def test_closing_gives_up_on_a_thread_that_does_not_let_go(path: Path) -> None:
    store = SqliteStore(path, busy_s=0.01)
    with store._writing.taken:
        store.close()
    assert store._release(1) is True


def test_a_connection_that_cannot_be_closed_does_not_stop_the_program(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    with monkeypatch.context() as patch:
        patch.setattr(store._reading, "close", lambda: (_ for _ in ()).throw(sqlite3.OperationalError("no")))
        assert store._release(1) is False
    store.close()
