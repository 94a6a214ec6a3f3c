"""The SQLite store: one file, any number of threads and processes of one machine.

What must stay true: an answer is given only after the change is on the disk; an operation happens as a whole or
not at all; whoever writes holds the writer lock (:mod:`agentguard.stores._sqlite_lock`); no connection crosses a
``fork``. Operations that arrive together share one transaction and one sync
(:mod:`agentguard.stores._grouping`); what they mean is written in :mod:`agentguard.stores.transitions`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeVar, cast

from agentguard.domain.operations import (
    Begin,
    Describe,
    Finish,
    GetApproval,
    GetCall,
    GetRun,
    GetState,
    ListApprovals,
    ListCalls,
    ListRuns,
    ListState,
    ListSwitches,
    Operation,
    ReadAccount,
    ReadAudit,
    ReadBudgets,
)
from agentguard.errors import AgentGuardError, StoreUnavailable
from agentguard.protocols import Clock
from agentguard.stores import _sqlite_schema as schema
from agentguard.stores._grouping import GroupQueue, Ticket
from agentguard.stores._sqlite_lock import WriterLock
from agentguard.stores._sqlite_rows import SqliteTables
from agentguard.stores.timing import SystemClock
from agentguard.stores.transitions import begin, finish, perform

T = TypeVar("T")

_READS: Final = frozenset(
    {
        Describe, GetApproval, GetCall, GetRun, GetState, ListApprovals, ListCalls, ListRuns, ListState,
        ListSwitches, ReadAccount, ReadAudit, ReadBudgets,
    }
)  # fmt: skip

_FORK_WAIT_S: Final = 10.0


class _Desk:
    """One connection with its tables, its thread lock, and the queue of those who want it.

    The store has two: one writes, one reads (and so never waits for the writer lock)."""

    def __init__(self, carry_out: Callable[[list[Ticket]], None], closed: str) -> None:
        self.connection: sqlite3.Connection | None = None
        self.tables: SqliteTables | None = None
        self.taken = threading.Lock()
        self.queue = GroupQueue(carry_out, closed)

    def close(self) -> None:
        connection, self.connection, self.tables = self.connection, None, None
        if connection is not None:
            connection.close()


class SqliteStore:
    """Keeps everything in one SQLite file; see :class:`~agentguard.protocols.Store`.

    Args:
        path: The file; created (readable by its owner only) with its tables when it is missing. A file
            ``<path>.lock`` beside it is the writer lock.
        clock: Replaces the machine's clock (tests).
        busy_s: How long an operation may wait for other processes, in seconds.

    Raises:
        StoreUnavailable: The file cannot be opened, belongs to another program or to a newer version, or lies
            on a network file system.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None, busy_s: float = 10.0) -> None:
        self._path = os.path.realpath(os.fspath(path))
        self._clock = clock or SystemClock()
        self._now = self._clock.now_ns
        self._busy_s = busy_s
        self._closed = False
        self._unsafe = False
        self._fork_holds: list[_Desk] = []
        closed = f"The SQLite store {self._path} is closed."
        self._writing = _Desk(self._write_group, closed)
        self._reading = _Desk(self._read_group, closed)
        schema.create_file(self._path)
        self._lock = self._new_lock()
        with self._errors(), self._writing.taken, self._locked():
            self._open_writing()
        this: weakref.ref[SqliteStore] = weakref.ref(self)
        self._at_exit = _AtExit(this)
        atexit.register(self._at_exit)
        os.register_at_fork(
            before=lambda: _at_fork(this, SqliteStore._before_fork),
            after_in_parent=lambda: _at_fork(this, SqliteStore._after_fork_in_parent),
            after_in_child=lambda: _at_fork(this, SqliteStore._after_fork_in_child),
        )

    # --- the protocol ----------------------------------------------------------------------------

    def perform(self, operation: Operation[T]) -> T:
        """Carry out one operation.

        Raises:
            StoreUnavailable: The file cannot be read or written, or others held it for too long. Nothing of
                the operation has happened, unless the disk failed in the very act of committing.
            StoreConflict: As the operation says.
            ApprovalError: As the operation says.
        """
        desk = self._reading if type(operation) in _READS else self._writing
        return cast("T", desk.queue.perform(operation))

    async def aperform(self, operation: Operation[T]) -> T:
        """Carry out one operation in a thread of the store; raises what :meth:`perform` raises.

        Cancelling the caller does not stop the operation.
        """
        desk = self._reading if type(operation) in _READS else self._writing
        return cast("T", await desk.queue.aperform(operation))

    def close(self) -> None:
        """Finish what was begun and release the file. Further operations raise ``StoreUnavailable``."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._reading.queue.close(self._busy_s)
        self._writing.queue.close(self._busy_s)
        self._release(self._busy_s)
        self._lock.discard()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and hasattr(self, "_at_exit"):
            self.close()

    # --- opening and closing ---------------------------------------------------------------------

    def _new_lock(self) -> WriterLock:
        return WriterLock(f"{self._path}.lock", schema.permissions(self._path))

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        if not self._lock.acquire(self._busy_s):
            raise StoreUnavailable(
                f"The SQLite store {self._path} was locked by another process for more than {self._busy_s:g} s. "
                "A process may be stopped or its disk may hang; see who holds the file with: "
                f"fuser {self._path}.lock"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _open_writing(self) -> SqliteTables:
        # Under the writer lock.
        desk = self._writing
        if desk.tables is None:
            self._refuse_unsafe()
            desk.connection = schema.connect(self._path, self._busy_s)
            try:
                schema.migrate(desk.connection, self._path)
            except BaseException:
                desk.close()
                raise
            desk.tables = SqliteTables(desk.connection, self._facts())
        return desk.tables

    def _open_reading(self) -> SqliteTables:
        desk = self._reading
        if desk.tables is None:
            self._refuse_unsafe()
            desk.connection = schema.connect(self._path, self._busy_s, reading=True)
            desk.tables = SqliteTables(desk.connection, self._facts())
        return desk.tables

    def _facts(self) -> Mapping[str, Any]:
        return {
            "kind": "sqlite",
            "durable": True,
            "path": self._path,
            "schema": len(schema.MIGRATIONS),
            "sqlite": sqlite3.sqlite_version,
            "journal": "wal",
            "synchronous": "full",
            "busy_s": self._busy_s,
            "processes": "many, on one machine",
        }

    def _refuse_unsafe(self) -> None:
        if self._unsafe:
            raise StoreUnavailable(
                f"This process was forked while the SQLite store {self._path} was busy and cannot use it safely. "
                "Start workers with the spawn or forkserver method, or open the store after the fork."
            )

    def _release(self, patience: float) -> bool:
        """Close both connections under the writer lock; ``False`` when somebody did not let go in time."""
        taken = [desk for desk in (self._writing, self._reading) if desk.taken.acquire(timeout=patience)]
        try:
            if len(taken) < 2:
                return False
            self._shut(patience)
            return True
        except (sqlite3.Error, OSError):
            return False
        finally:
            for desk in taken:
                desk.taken.release()

    def _shut(self, patience: float) -> None:
        # Closing the last connection of a file checkpoints it. Where the lock cannot be had in time, others have
        # the file open, and this is not the last.
        if self._writing.connection is None and self._reading.connection is None:
            return
        locked = self._lock.acquire(patience)
        try:
            self._reading.close()
            self._writing.close()
        finally:
            if locked:
                self._lock.release()

    # --- fork ------------------------------------------------------------------------------------
    # SQLite keeps the locks of a process in memory that a child would inherit without having them, so even a
    # new connection of the child would be unsafe beside an inherited one. Therefore nothing is open during a fork.

    def _before_fork(self) -> None:
        self._fork_holds = [d for d in (self._writing, self._reading) if d.taken.acquire(timeout=_FORK_WAIT_S)]
        if len(self._fork_holds) < 2:
            self._unsafe = True
            return
        try:
            self._shut(_FORK_WAIT_S)
        except (sqlite3.Error, OSError):
            self._unsafe = True

    def _after_fork_in_parent(self) -> None:
        self._unsafe = False
        for desk in self._fork_holds:
            desk.taken.release()
        self._fork_holds = []

    def _after_fork_in_child(self) -> None:
        if self._unsafe:
            # Never closed and never collected: both would write to the file of the parent.
            _left_behind.append((self._writing.connection, self._reading.connection))
        for desk in (self._writing, self._reading):
            desk.connection = desk.tables = None
            desk.taken = threading.Lock()
            desk.queue.forked()
        self._fork_holds = []
        self._lock = self._new_lock()

    # --- groups ----------------------------------------------------------------------------------

    def _write_group(self, group: list[Ticket]) -> None:
        try:
            with self._errors(), self._writing.taken, self._locked():
                tables = self._open_writing()
                connection = self._writing.connection
                assert connection is not None
                if not self._transact(connection, tables, group):
                    # One of them cannot be written, and nothing was: each for itself, so that only that one fails.
                    for ticket in group:
                        self._transact(connection, tables, [ticket])
        except StoreUnavailable as error:
            _fail(group, error)

    def _transact(self, connection: sqlite3.Connection, tables: SqliteTables, group: list[Ticket]) -> bool:
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            if tables.start():
                schema.check(connection, self._path)
            for ticket in group:
                self._try(tables, ticket)
            try:
                tables.flush()
            except (ValueError, TypeError, OverflowError, sqlite3.IntegrityError, sqlite3.InterfaceError) as error:
                connection.execute("ROLLBACK")
                tables.forget()
                if len(group) > 1:
                    return False
                problem = StoreUnavailable(f"The SQLite store {self._path} cannot keep this: {error}")
                problem.__cause__ = error
                _fail(group, problem)
                return True
            committing = True
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                committing = False
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            tables.forget()
            if committing:  # interrupted after the commit: it happened, and everybody may know
                _settle(group)
            raise
        _settle(group)
        return True

    def _try(self, tables: SqliteTables, ticket: Ticket) -> None:
        tables.now = self._now()
        operation = ticket.operation
        ticket.answer = ticket.error = None
        try:
            kind = type(operation)
            if kind is Begin:
                ticket.answer = begin(tables, cast("Begin", operation))
            elif kind is Finish:
                ticket.answer = finish(tables, cast("Finish", operation))
            else:
                ticket.answer = perform(tables, operation)
        except sqlite3.Error:
            raise
        except Exception as error:
            tables.discard()
            ticket.error = error
        else:
            tables.keep()

    def _read_group(self, group: list[Ticket]) -> None:
        try:
            with self._errors(), self._reading.taken:
                tables = self._open_reading()
                connection = self._reading.connection
                assert connection is not None
                connection.execute("BEGIN")
                try:
                    if tables.start():
                        schema.check(connection, self._path)
                    for ticket in group:
                        self._try(tables, ticket)
                    _settle(group)
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except StoreUnavailable as error:
            _fail(group, error)

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        """Turn what SQLite and the system say into what the reader can do."""
        try:
            yield
        except AgentGuardError:
            raise
        except sqlite3.Error as error:
            raise StoreUnavailable(self._explain(error)) from error
        except OSError as error:
            raise StoreUnavailable(f"The SQLite store {self._path} cannot be reached: {error}.") from error

    def _explain(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        advice = next((text for start, text in _ADVICE if name.startswith(start)), "")
        return f"The SQLite store {self._path} failed: {error} ({name}). {advice}".rstrip()


_ADVICE: Final = (
    ("SQLITE_FULL", "The disk or the quota is full; free some space. Nothing was changed."),
    ("SQLITE_READONLY", "The file or its directory may not be written by this user. Nothing was changed."),
    ("SQLITE_CANTOPEN", "Check that file and directory exist and may be written by this user."),
    ("SQLITE_NOTADB", "That is no SQLite database; give the store a file of its own."),
    ("SQLITE_CORRUPT", "The file is damaged; restore it from a backup. Nothing runs until then."),
    ("SQLITE_BUSY", "Another program holds the file without the writer lock; close it. Nothing was changed."),
    ("SQLITE_IOERR", "The disk reports an error; see the system's log."),
)

_left_behind: Final[list[Any]] = []
"""Connections that a forked child must neither use nor close. Module-level because they must outlive everything."""


class _AtExit:
    """Closes a store when the interpreter ends, without keeping it alive until then."""

    def __init__(self, store: weakref.ref[SqliteStore]) -> None:
        self._store = store

    def __call__(self) -> None:
        store = self._store()
        if store is not None:
            store.close()


def _at_fork(this: weakref.ref[SqliteStore], step: Callable[[SqliteStore], None]) -> None:
    store = this()
    if store is not None:
        step(store)


def _settle(group: list[Ticket]) -> None:
    for ticket in group:
        ticket.done = True


def _fail(group: list[Ticket], error: StoreUnavailable) -> None:
    # Everybody gets an exception of their own: tracebacks grow on them in several threads.
    for ticket in group:
        if not ticket.done:
            ticket.answer = None
            ticket.error = StoreUnavailable(*error.args)
            ticket.error.__cause__ = error.__cause__
            ticket.done = True
