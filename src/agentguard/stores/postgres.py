"""The PostgreSQL store: any number of threads, event loops, processes and machines.

What must stay true: an answer is given only after the change is durable on the server; an operation happens as a
whole or not at all; the server's clock is the only one; nobody waits longer than the deadline, also when the server is frozen
or the network gone; a statement whose fate is unknown is repeated only where repeating it changes nothing. What the
operations mean is written in :mod:`agentguard.stores.transitions`; the common case of beginning and finishing a call
is done by the server alone, in one round trip (:mod:`agentguard.stores._postgres_fast`).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import weakref
from collections.abc import Generator, Mapping
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
from agentguard.errors import ConfigurationError, MissingExtra, StoreUnavailable
from agentguard.protocols import Clock
from agentguard.stores import _postgres_schema as tables
from agentguard.stores._postgres_rows import Missing, PostgresTables, foresee
from agentguard.stores._postgres_schema import Rows, Statement
from agentguard.stores.transitions import perform

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from agentguard.stores._postgres_fast import Beginning, Finishing, Meters
    from agentguard.stores._postgres_wire import (
        AsyncLine,
        AsyncLinePool,
        Crowded,
        Late,
        Line,
        LinePool,
        adial,
        dial,
        sound,
    )
except ImportError as error:
    raise MissingExtra("postgres", "psycopg") from error

T = TypeVar("T")

_READS: Final = frozenset(
    {
        Describe, GetApproval, GetCall, GetRun, GetState, ListApprovals, ListCalls, ListRuns, ListState,
        ListSwitches, ReadAccount, ReadAudit, ReadBudgets,
    }
)  # fmt: skip

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_OLDEST: Final = 140000
_TRIES: Final = 5
_ROUNDS: Final = 8

# SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
_AGAIN: Final = frozenset({"40001", "40P01", "23505"})
"""The server has undone everything: a deadlock, a moved row, or two that inserted the same key."""

_UNDONE: Final = frozenset({"22", "23", "25", "3D", "3F", "40", "42", "55"})
"""Classes of errors that come before a change is committed. Others (given up for time, disk full) may come after it,
when only the disk was being waited for."""

_ADVICE: Final = {
    "55P03": "Others held a lock for too long. Nothing was changed.",
    "57014": "It took too long and was given up.",
    "25006": "This server is a read-only standby; use the address of the primary.",
    "28P01": "User or password are wrong.",
    "28000": "The server does not let this user in.",
    "3D000": "The database does not exist; create it first.",
    "42501": "The user lacks a privilege; it must own the store's schema, or be allowed to create it.",
    "53100": "The server's disk is full.",
    "53300": "The server has no connection left; lower max_connections of the stores or raise that of the server.",
    "57P03": "The server is starting or stopping.",
}

_TUNE: Final = (
    "SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false), "
    "set_config('idle_in_transaction_session_timeout', $3, false), set_config('search_path', 'pg_catalog', false), "
    "set_config('default_transaction_isolation', 'read committed', false), "
    "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false)"
)
_FACTS: Final = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
    "current_setting('server_encoding'), current_setting('fsync'), current_setting('synchronous_commit'), "
    "pg_is_in_recovery()"
)
_END: Final[Statement] = ("COMMIT", ())
"""Ends a transaction that has written nothing (a rollback would make the driver forget its prepared statements)."""
_FLUSH: Final = ("SELECT pg_logical_emit_message(true, 'agentguard', '')", ())
_COMMIT: Final[list[Statement]] = [("SET LOCAL synchronous_commit = off", ()), ("COMMIT", ()), _FLUSH]
"""Frees the rows before the disk has been waited for; see :mod:`agentguard.stores._postgres_schema`."""


class _Batch:
    """Statements for one round trip. ``decides``: they make the change durable; ``open_ended``: they leave a
    transaction open."""

    __slots__ = ("decides", "open_ended", "statements")

    def __init__(self, statements: list[Statement], *, decides: bool = False, open_ended: bool = False) -> None:
        self.statements = statements
        self.decides = decides
        self.open_ended = open_ended


class _Attempt:
    """How far one try of an operation has come."""

    __slots__ = ("deciding",)

    def __init__(self) -> None:
        self.deciding = False

    def about_to(self, batch: _Batch, line: Line | AsyncLine) -> None:
        """Before a batch is sent; what would decide is not sent into a connection that is gone already."""
        if batch.decides and not sound(line):
            raise psycopg.OperationalError(
                "the connection was lost before anything was changed, or taken away because this process stopped for "
                "too long between reading and writing"
            )
        self.deciding = batch.decides


class PostgresStore:
    """Keeps everything in a schema of a PostgreSQL database; see :class:`~agentguard.protocols.Store`.

    Args:
        url: Address as libpq reads it: ``postgresql://user:password@host:5432/database?sslmode=verify-full``.
        schema: Schema of this installation, lower case; created with its tables when it is missing.
        deadline_s: How long an operation may take, in seconds, whatever the server does.
        max_connections: Connections of this process for threads, and again as many for event loops.
        clock: Replaces the server's clock (tests).
        one_trip: Begin and finish calls in one round trip where that is possible; ``False`` has the same meaning
            and takes three (tests compare the two).

    Raises:
        MissingExtra: ``psycopg`` is not installed.
        ConfigurationError: ``AG123``: the address or a setting cannot be used.
        StoreUnavailable: The server cannot be reached, is older than PostgreSQL 14 or does not use UTF-8, or the
            schema belongs to another program or to a newer version.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "agentguard",
        deadline_s: float = 5.0,
        max_connections: int = 10,
        clock: Clock | None = None,
        one_trip: bool = True,
    ) -> None:
        if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
            raise ConfigurationError(
                f"{schema!r:.80} cannot be the schema of a store; use 1 to 48 lower-case letters, digits and _, "
                "not starting with pg_.",
                code="AG123",
            )
        if isinstance(deadline_s, bool) or not isinstance(deadline_s, (int, float)) or not 0 < deadline_s <= 3600:
            raise ConfigurationError(f"deadline_s is {deadline_s!r:.40}; use seconds, more than 0.", code="AG123")
        if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
            raise ConfigurationError(f"max_connections is {max_connections!r:.40}; use 1 or more.", code="AG123")
        self._url = url
        self._where = _place(url)
        self._schema = schema
        self._deadline_s = float(deadline_s)
        self._now = clock.now_ns if clock is not None else _no_time
        self._one_trip = one_trip
        self._meters = Meters()
        self._closed = False
        self._facts: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lines = LinePool(max_connections, self._connect)
        self._async_lines = AsyncLinePool(max_connections, self._aconnect)
        self._open()
        this: weakref.ref[PostgresStore] = weakref.ref(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _forked(this))

    def __repr__(self) -> str:
        return f"PostgresStore({self._where}, schema={self._schema!r})"

    # --- the protocol ----------------------------------------------------------------------------

    def perform(self, operation: Operation[T]) -> T:
        """Carry out one operation.

        Raises:
            StoreUnavailable: The server does not answer in time, cannot be reached or says no. The message says
                whether the operation may have happened all the same.
            StoreConflict: As the operation says.
            ApprovalError: As the operation says.
        """
        due = time.monotonic() + self._deadline_s
        for tries in range(1, _TRIES + 1):
            attempt = _Attempt()
            line: Line | None = None
            try:
                line = self._take(due)
                return cast("T", self._drive(line, self._steps(operation), attempt, due))
            except Exception as error:
                self._judge(error, operation, attempt, tries, due)
            finally:
                if line is not None:
                    self._give(line, due)
        raise AssertionError("the last try judges")

    async def aperform(self, operation: Operation[T]) -> T:
        """Carry out one operation without blocking the event loop; raises what :meth:`perform` raises.

        Cancelling the caller does not stop the operation.
        """
        task = asyncio.get_running_loop().create_task(self._aperform(operation))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _aperform(self, operation: Operation[T]) -> T:
        due = time.monotonic() + self._deadline_s
        for tries in range(1, _TRIES + 1):
            attempt = _Attempt()
            line: AsyncLine | None = None
            try:
                line = await self._atake(due)
                return cast("T", await self._adrive(line, self._steps(operation), attempt, due))
            except Exception as error:
                self._judge(error, operation, attempt, tries, due)
            finally:
                if line is not None:
                    await self._agive(line, due)
        raise AssertionError("the last try judges")

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has it, or was cancelled and does not want it

    def close(self) -> None:
        """Close the connections; those in use when they are given back. Further operations raise ``StoreUnavailable``."""
        self._closed = True
        self._lines.close()
        self._async_lines.close()

    def __del__(self) -> None:
        if hasattr(self, "_async_lines"):
            self.close()

    # --- one operation ---------------------------------------------------------------------------

    def _steps(self, op: Operation[Any]) -> Generator[_Batch, list[Rows], Any]:
        """What to send for an operation, round trip by round trip; returns its answer."""
        now = self._now()
        if self._one_trip:
            fast: Beginning | Finishing | None = None
            if isinstance(op, Begin):
                fast = Beginning.of(op, self._schema, now, self._meters)
            elif isinstance(op, Finish):
                fast = Finishing.of(op, self._schema, now)
            if fast is not None:
                answer = fast.answer((yield _Batch([fast.statement], decides=True))[0])
                if answer is not None:
                    return answer
        wants = foresee(op)
        if type(op) in _READS:
            for _ in range(_ROUNDS):
                rows = yield _Batch(wants.statements(self._schema, now, lock=False))
                try:
                    return perform(PostgresTables(wants, rows, self._facts), op)
                except Missing as missing:
                    wants.add(missing)
        before: list[Statement] = [("BEGIN", ())]
        for _ in range(_ROUNDS):
            rows = yield _Batch([*before, *wants.statements(self._schema, now, lock=True)], open_ended=True)
            transaction = PostgresTables(wants, rows[len(before) :], self._facts)
            try:
                answer = perform(transaction, op)
            except Missing as missing:
                wants.add(missing)
                before = [_END, ("BEGIN", ())]
                continue
            changes = transaction.changes(self._schema)
            if changes:
                yield _Batch([*changes, *_COMMIT], decides=True)
            else:
                yield _Batch([_END])
            return answer
        raise StoreUnavailable(f"The operation {type(op).__name__} asked for more and more rows of {self._where}.")

    def _drive(self, line: Line, steps: Generator[_Batch, list[Rows], Any], attempt: _Attempt, due: float) -> Any:
        try:
            batch = next(steps)
            while True:
                attempt.about_to(batch, line)
                rows = line.run(batch.statements, due, open_ended=batch.open_ended)
                attempt.deciding = False
                batch = steps.send(rows)
        except StopIteration as end:
            return end.value

    async def _adrive(
        self, line: AsyncLine, steps: Generator[_Batch, list[Rows], Any], attempt: _Attempt, due: float
    ) -> Any:
        try:
            batch = next(steps)
            while True:
                attempt.about_to(batch, line)
                rows = await line.run(batch.statements, due, open_ended=batch.open_ended)
                attempt.deciding = False
                batch = steps.send(rows)
        except StopIteration as end:
            return end.value

    def _judge(self, error: Exception, op: Operation[Any], attempt: _Attempt, tries: int, due: float) -> None:
        """Return when the operation is to be tried again; raise what its caller is told otherwise."""
        if not isinstance(error, (psycopg.Error, Late, Crowded)):
            raise error
        state = getattr(error, "sqlstate", None)
        undone = isinstance(error, psycopg.DataError) or (state is not None and state[:2] in _UNDONE)
        # Finishing is idempotent by its fence, reading changes nothing; of everything else the fate must be known.
        harmless = undone or not attempt.deciding or isinstance(op, Finish) or type(op) in _READS
        broken = not isinstance(error, (Late, Crowded)) and (state is None or state.startswith(("08", "57P")))
        if tries < _TRIES and time.monotonic() < due and (state in _AGAIN or (broken and harmless and tries < 3)):
            return
        raise self._explained(error, maybe=attempt.deciding and not undone) from error

    def _explained(self, error: Exception, *, maybe: bool) -> StoreUnavailable:
        fate = " It may have happened all the same: nothing was acknowledged, and nothing is repeated." if maybe else ""
        if isinstance(error, Late):
            return StoreUnavailable(f"{self._where} did not answer within {self._deadline_s:g} s.{fate}")
        if isinstance(error, Crowded):
            return StoreUnavailable(
                f"All connections to {self._where} were in use for {self._deadline_s:g} s; raise max_connections."
            )
        state = getattr(error, "sqlstate", None) or ""
        advice = _ADVICE.get(state, "")
        if state in ("42P01", "42883", "3F000"):
            advice = (
                f"The tables of the schema {self._schema} are gone or were upgraded by a newer agentguard. Nothing is "
                "granted until that is resolved: restore the schema, or start this program anew with that version."
            )
        elif state.startswith("22") or isinstance(error, psycopg.DataError):
            advice = "A value of the operation cannot be kept there. Nothing was changed."
        said = " ".join(str(error).split())[:300]
        return StoreUnavailable(
            f"{self._where} failed: {said} ({state or type(error).__name__}). {advice}".rstrip() + fate
        )

    # --- connections -----------------------------------------------------------------------------

    def _take(self, due: float) -> Line:
        self._refuse_closed()
        return self._lines.take(due)

    async def _atake(self, due: float) -> AsyncLine:
        self._refuse_closed()
        return await self._async_lines.take(due)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"The store at {self._where} is closed.")

    def _give(self, line: Line, due: float) -> None:
        try:
            if _unfinished(line):
                line.run([("ROLLBACK", ())], due)
        except Exception:
            line.pgconn.finish()
        finally:
            self._lines.give(line)

    async def _agive(self, line: AsyncLine, due: float) -> None:
        try:
            if _unfinished(line):
                await line.run([("ROLLBACK", ())], due)
        except Exception:
            line.pgconn.finish()
        finally:
            self._async_lines.give(line)

    def _connect(self, due: float) -> Line:
        line = dial(self._url, due)
        try:
            line.run([self._tuning()], due)
        except BaseException:
            line.pgconn.finish()
            raise
        return line

    async def _aconnect(self, due: float) -> AsyncLine:
        line = await adial(self._url, due)
        try:
            await line.run([self._tuning()], due)
        except BaseException:
            line.pgconn.finish()
            raise
        return line

    def _tuning(self) -> Statement:
        whole = max(round(self._deadline_s * 1000), 1)
        # A process that stops in the middle of an operation must not keep others waiting for as long as they may wait.
        # Locks are given up a little before the statement: then it is certain that nothing was changed.
        return _TUNE, (str(whole), str(max(whole * 9 // 10, 1)), str(max(min(whole // 2, 2000), 1)))

    def _open(self) -> None:
        due = time.monotonic() + self._deadline_s
        line: Line | None = None
        try:
            line = self._lines.take(due)
            number, version, encoding, fsync, commit, standby = line.run([(_FACTS, ())], due)[0][0]
            if number < _OLDEST:
                raise StoreUnavailable(f"{self._where} is PostgreSQL {version}; 14 or newer is needed.")
            if encoding != "UTF8":
                raise StoreUnavailable(f"{self._where} is encoded in {encoding}; a database in UTF8 is needed.")
            if standby:
                raise StoreUnavailable(f"{self._where} is a read-only standby; use the address of the primary.")
            steps = tables.migrating(self._schema, self._where)
            try:
                batch = next(steps)
                while True:
                    batch = steps.send(line.run(batch, due))
            except StopIteration:
                pass
            self._facts = {
                "kind": "postgresql",
                "durable": fsync == "on",
                "path": self._where,
                "schema": f"{self._schema}, version {len(tables.MIGRATIONS)}",
                "server": version,
                "fsync": fsync,
                "synchronous_commit": commit,
                "deadline_s": self._deadline_s,
                "processes": "many, on many machines",
            }
        except (psycopg.Error, Late, Crowded) as error:
            raise self._explained(error, maybe=False) from error
        finally:
            if line is not None:
                self._give(line, due)


def _no_time() -> None:
    """The server tells the time."""


def _unfinished(line: Line | AsyncLine) -> bool:
    return not line.closed and line.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE


def _place(url: str) -> str:
    """What an address means, for messages: never its password, nor an address that cannot be read."""
    try:
        parts: Mapping[str, Any] = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigurationError(
            "The address of the PostgreSQL store cannot be read; use postgresql://user:password@host:5432/database, with %XX "
            "for special characters.",
            code="AG123",
        ) from None
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"PostgreSQL at {host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


def _forked(this: weakref.ref[PostgresStore]) -> None:
    store = this()
    if store is not None:
        store._lines.forked()
        store._async_lines.forked()
        store._tasks = set()
