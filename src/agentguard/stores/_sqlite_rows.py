"""The rows of a SQLite store as one :class:`~agentguard.stores.rows.Transaction`.

What must stay true: an operation works on copies, and only when it has succeeded do they replace what the group
knows; so an operation that fails leaves nothing behind although it shares its transaction with others. Changed
rows are written once per group. What was read or written stays known until another connection has changed
the file (``PRAGMA data_version``), which is asked inside every transaction.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar, cast

from agentguard.approval import routing
from agentguard.budget.ledger import Account, Hold
from agentguard.domain.approvals import ApprovalRequest, Grant
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.runs import ApprovalFilter, RunFilter, StateEntry, Switch
from agentguard.stores import _row_text as text
from agentguard.stores.rows import CallRow, RunRow

K = TypeVar("K")
V = TypeVar("V")

_SALTS: Final = 256
_FEW_SWITCHES: Final = 256
_KNOWN_ROWS: Final = 4096

_Written = tuple[str, list[tuple[Any, ...]]]


class _Shelf(Generic[K, V]):
    """The rows of one kind: what the file holds, what the group changed, what the operation changed."""

    __slots__ = ("_copy", "_load", "changed", "complete", "known", "live", "put_keys")

    def __init__(self, load: Callable[[K], V | None], copy: Callable[[V], V] | None = None) -> None:
        self._load = load
        self._copy = copy
        self.known: dict[K, V | None] = {}
        self.changed: dict[K, None] = {}
        self.live: dict[K, V | None] = {}
        self.put_keys: dict[K, None] = {}
        self.complete = False

    def get(self, key: K) -> V | None:
        live = self.live
        if key in live:
            return live[key]
        if key in self.known:
            row = self.known[key]
        elif self.complete:
            return None
        else:
            row = self.known[key] = self._load(key)
        if row is not None and self._copy is not None:
            row = self._copy(row)
        live[key] = row
        return row

    def put(self, key: K, row: V | None) -> None:
        self.live[key] = row
        self.put_keys[key] = None

    def keep(self) -> None:
        live = self.live
        if self.put_keys:
            for key in self.put_keys:
                self.known[key] = live[key]
                self.changed[key] = None
            self.put_keys = {}
        if live:
            self.live = {}

    def discard(self) -> None:
        self.live = {}
        self.put_keys = {}

    def forget(self) -> None:
        self.known = {}
        self.changed = {}
        self.complete = False
        self.discard()


class SqliteTables:
    """All rows behind one connection; see :class:`~agentguard.stores.rows.Transaction`.

    Args:
        connection: In autocommit mode; whoever owns these tables begins and ends the transactions.
        facts: What ``describe`` says besides.
    """

    def __init__(self, connection: sqlite3.Connection, facts: Mapping[str, Any]) -> None:
        self.now = 0
        self._db = connection
        self._facts = facts
        self._version = -1
        self._salts: list[str] = []
        self._opened = functools.lru_cache(maxsize=1024)(text.opened_value)
        self._runs: _Shelf[tuple[str, str], RunRow] = _Shelf(self._load_run, text.copy_run)
        self._new_runs: set[tuple[str, str]] = set()
        self._calls: _Shelf[tuple[str, str], CallRow] = _Shelf(self._load_call, text.copy_call)
        self._accounts: _Shelf[str, Account] = _Shelf(self._load_account, text.copy_account)
        self._holds: _Shelf[str, Hold] = _Shelf(self._load_hold)
        # Requests and states hold values that callers could change: kept as text, every reader gets its own.
        self._approvals: _Shelf[str, str] = _Shelf(self._load_approval)
        self._grants: _Shelf[tuple[str, str], Grant] = _Shelf(self._load_grant)
        self._switches: _Shelf[tuple[str, str, str], Switch] = _Shelf(self._load_switch)
        self._states: _Shelf[tuple[str, str, str], tuple[Any, ...]] = _Shelf(self._load_state)
        self._shelves: tuple[_Shelf[Any, Any], ...] = (
            self._runs,
            self._calls,
            self._accounts,
            self._holds,
            self._approvals,
            self._grants,
            self._switches,
            self._states,
        )
        self._records: list[AuditRecord] = []
        self._records_kept = 0
        self._saved = False

    # --- transactions ----------------------------------------------------------------------------

    def start(self) -> bool:
        """Begin to work inside a transaction; ``True`` when another connection has changed the file since."""
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        stale = bool(version != self._version)
        if stale or sum(len(shelf.known) for shelf in self._shelves) > _KNOWN_ROWS:
            self.forget()
            self._version = version
        if not self._switches.complete:
            self._load_switches()
        return stale

    def keep(self) -> None:
        """The operation has succeeded: what it put belongs to the group."""
        for shelf in self._shelves:
            if shelf.live:
                shelf.keep()
        self._records_kept = len(self._records)
        if self._saved:
            self._db.execute("RELEASE operation")
            self._saved = False

    def discard(self) -> None:
        """The operation has failed: what it put is forgotten."""
        for shelf in self._shelves:
            shelf.discard()
        del self._records[self._records_kept :]
        if self._saved:
            self._db.execute("ROLLBACK TO operation")
            self._db.execute("RELEASE operation")
            self._saved = False

    def forget(self) -> None:
        """Know nothing any more: the transaction was rolled back, or somebody else changed the file."""
        for shelf in self._shelves:
            shelf.forget()
        self._new_runs = set()
        self._records = []
        self._records_kept = 0
        self._saved = False
        self._version = -1

    def flush(self) -> bool:
        """Write what the group has changed; ``False`` when there was nothing."""
        wrote = False
        for shelf in self._shelves:
            if shelf.changed:
                self._write(shelf, list(shelf.changed), shelf.known)
                shelf.changed = {}
                wrote = True
        self._new_runs = set()
        if self._records_kept:
            self._append(self._records[: self._records_kept])
            del self._records[: self._records_kept]
            self._records_kept = 0
            wrote = True
        return wrote

    def _settle(self) -> None:
        # A query over many rows must see what is not written yet; what the current operation has put goes
        # under a savepoint, because it may still fail.
        new = set(self._new_runs)
        self.flush()
        if self._records or any(shelf.put_keys for shelf in self._shelves):
            if not self._saved:
                self._db.execute("SAVEPOINT operation")
                self._saved = True
            self._new_runs = new
            for shelf in self._shelves:
                if shelf.put_keys:
                    self._write(shelf, list(shelf.put_keys), shelf.live)
            self._append(self._records)
            self._records = []

    def _append(self, records: list[AuditRecord]) -> None:
        self._db.executemany(
            "INSERT INTO records (tenant, run_id, seq, line, hash, salt, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(r.tenant, r.run_id, r.seq, r.line, r.hash, r.salt, r.body) for r in records],
        )

    def _write(self, shelf: _Shelf[Any, Any], keys: list[Any], rows: Mapping[Any, Any]) -> None:
        many = self._db.executemany
        gone = [key for key in keys if rows[key] is None]
        kept = [(key, rows[key]) for key in keys if rows[key] is not None]
        if shelf is self._runs:
            fresh = [row for key, row in kept if key in self._new_runs]
            if fresh:
                many(_INSERT_RUN, [_new_run(row) for row in fresh])
            old = [(*text.run_changes(row), *key) for key, row in kept if key not in self._new_runs]
            if old:
                many(_UPDATE_RUN, old)
        elif shelf is self._calls:
            many(_PUT_CALL, [text.call_values(row) for _, row in kept])
        elif shelf is self._accounts:
            many(_PUT_ACCOUNT, [text.account_values(row) for _, row in kept])
        elif shelf is self._holds:
            if kept:
                many(_PUT_HOLD, [text.hold_values(row) for _, row in kept])
            if gone:
                many("DELETE FROM holds WHERE key = ?", [(key,) for key in gone])
        elif shelf is self._approvals:
            many(_PUT_APPROVAL, [_approval_values(row) for _, row in kept])
        elif shelf is self._grants:
            many(
                "INSERT OR REPLACE INTO grants (tenant, digest, id, expires_at) VALUES (?, ?, ?, ?)",
                [(row.tenant, row.digest, row.id, row.expires_at) for _, row in kept],
            )
        elif shelf is self._switches:
            if gone:
                many("DELETE FROM switches WHERE scope = ? AND tenant = ? AND value = ?", gone)
            many(_PUT_SWITCH, [(s.scope, s.tenant, s.value, s.reason, s.by, s.at) for _, s in kept])
        else:
            many(
                "INSERT OR REPLACE INTO states (tenant, run_id, key, value, version, by, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*key, *row) for key, row in kept],
            )

    def _one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        return cast("tuple[Any, ...] | None", self._db.execute(sql, values).fetchone())

    # --- runs ------------------------------------------------------------------------------------

    def salt(self) -> str:
        if not self._salts:
            block = os.urandom(16 * _SALTS).hex()
            self._salts = [block[i : i + 32] for i in range(0, len(block), 32)]
        return self._salts.pop()

    def _run_row(self, columns: tuple[Any, ...]) -> RunRow:
        return text.run_row(self._opened(columns[0]), columns)

    def _load_run(self, key: tuple[str, str]) -> RunRow | None:
        found = self._one(f"SELECT {text.RUN_COLUMNS} FROM runs WHERE tenant = ? AND run_id = ?", *key)
        return None if found is None else self._run_row(found)

    def run(self, tenant: str, run_id: str) -> RunRow | None:
        return self._runs.get((tenant, run_id))

    def find_run(self, run_id: str) -> RunRow | None:
        self._settle()
        found = self._db.execute("SELECT tenant FROM runs WHERE run_id = ? LIMIT 2", (run_id,)).fetchall()
        return self.run(found[0][0], run_id) if len(found) == 1 else None

    def runs(self, wanted: RunFilter) -> list[RunRow]:
        self._settle()
        where, values = _conditions(
            tenant=wanted.tenant, agent=wanted.agent, user=wanted.user, session=wanted.session, status=wanted.status
        )
        sql = f"SELECT {text.RUN_COLUMNS} FROM runs{where} ORDER BY started_at DESC, n DESC LIMIT ?"
        found = self._db.execute(sql, (*values, max(wanted.limit, 0)))
        return [self._run_row(columns) for columns in found.fetchall()]

    def put_run(self, row: RunRow) -> None:
        context = row.opened.context
        key = (context.tenant, context.run_id)
        if self._runs.known.get(key) is None:
            self._new_runs.add(key)
        self._runs.put(key, row)

    # --- calls -----------------------------------------------------------------------------------

    def _load_call(self, key: tuple[str, str]) -> CallRow | None:
        found = self._one(f"SELECT {text.CALL_COLUMNS} FROM calls WHERE tenant = ? AND key = ?", *key)
        return None if found is None else CallRow(*found)

    def call(self, tenant: str, key: str) -> CallRow | None:
        return self._calls.get((tenant, key))

    def calls(self, tenant: str, run_id: str) -> list[CallRow]:
        self._settle()
        sql = f"SELECT {text.CALL_COLUMNS} FROM calls WHERE tenant = ? AND run_id = ? ORDER BY n"
        return [CallRow(*columns) for columns in self._db.execute(sql, (tenant, run_id)).fetchall()]

    def put_call(self, row: CallRow) -> None:
        self._calls.put((row.tenant, row.key), row)

    def running(self, tenant: str, tool: str) -> int:
        self._settle()
        sql = "SELECT count(*) FROM calls WHERE tenant = ? AND tool = ? AND status = 'running' AND lease_until > ?"
        return int(self._db.execute(sql, (tenant, tool, self.now)).fetchone()[0])

    # --- budgets ---------------------------------------------------------------------------------

    def _load_account(self, key: str) -> Account | None:
        found = self._one("SELECT used, held, warned FROM accounts WHERE key = ?", key)
        return None if found is None else text.account_value(key, cast("tuple[str, str, str]", found))

    def account(self, key: str) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts.live[key] = Account(key)
        return account

    def put_account(self, account: Account) -> None:
        self._accounts.put(account.key, account)

    def _load_hold(self, key: str) -> Hold | None:
        found = self._one("SELECT key, accounts, amounts, lease_until FROM holds WHERE key = ?", key)
        return None if found is None else text.hold_value(cast("tuple[str, str, str, int]", found))

    def hold(self, key: str) -> Hold | None:
        return self._holds.get(key)

    def put_hold(self, hold: Hold) -> None:
        self._holds.put(hold.key, hold)

    def drop_hold(self, key: str) -> None:
        self._holds.put(key, None)

    def lapsed_holds(self) -> list[Hold]:
        self._settle()
        sql = "SELECT key, accounts, amounts, lease_until FROM holds WHERE lease_until <= ? ORDER BY lease_until, key"
        return [text.hold_value(columns) for columns in self._db.execute(sql, (self.now,)).fetchall()]

    # --- approvals -------------------------------------------------------------------------------

    def _load_approval(self, approval_id: str) -> str | None:
        found = self._one("SELECT request FROM approvals WHERE id = ?", approval_id)
        return None if found is None else str(found[0])

    def approval(self, approval_id: str) -> ApprovalRequest | None:
        found = self._approvals.get(approval_id)
        return None if found is None else routing.from_json(found)

    def approvals(self, wanted: ApprovalFilter) -> list[ApprovalRequest]:
        self._settle()
        # A stored status changes by itself only into "expired".
        status = None if wanted.status == "expired" else wanted.status
        where, values = _conditions(tenant=wanted.tenant, run_id=wanted.run_id, tool=wanted.tool, status=status)
        found = self._db.execute(f"SELECT request FROM approvals{where} ORDER BY n", values)
        return [routing.from_json(columns[0]) for columns in found.fetchall()]

    def put_approval(self, request: ApprovalRequest) -> None:
        self._approvals.put(request.id, routing.to_json(request))

    def _load_grant(self, key: tuple[str, str]) -> Grant | None:
        found = self._one("SELECT id, tenant, digest, expires_at FROM grants WHERE tenant = ? AND digest = ?", *key)
        return None if found is None else Grant(*found)

    def grant(self, tenant: str, digest: str) -> Grant | None:
        return self._grants.get((tenant, digest))

    def put_grant(self, grant: Grant) -> None:
        self._grants.put((grant.tenant, grant.digest), grant)

    # --- switches --------------------------------------------------------------------------------

    def _load_switches(self) -> None:
        sql = "SELECT scope, tenant, value, reason, by, at FROM switches LIMIT ?"
        found = self._db.execute(sql, (_FEW_SWITCHES + 1,)).fetchall()
        if len(found) <= _FEW_SWITCHES:
            self._switches.known.update({(c[0], c[1], c[2]): Switch(*c) for c in found})
            self._switches.complete = True

    def _load_switch(self, key: tuple[str, str, str]) -> Switch | None:
        sql = "SELECT scope, tenant, value, reason, by, at FROM switches WHERE scope = ? AND tenant = ? AND value = ?"
        found = self._one(sql, *key)
        return None if found is None else Switch(*found)

    def switched(self) -> bool:
        shelf = self._switches
        return not shelf.complete or bool(shelf.known) or bool(shelf.live)

    def switch(self, scope: str, tenant: str, value: str) -> Switch | None:
        return self._switches.get((scope, tenant, value))

    def switches(self, tenant: str | None) -> list[Switch]:
        self._settle()
        sql = "SELECT scope, tenant, value, reason, by, at FROM switches"
        if tenant is None:
            found = self._db.execute(f"{sql} ORDER BY n")
        else:
            found = self._db.execute(f"{sql} WHERE tenant IN ('', ?) ORDER BY n", (tenant,))
        return [Switch(*columns) for columns in found.fetchall()]

    def put_switch(self, switch: Switch) -> None:
        self._switches.put((switch.scope, switch.tenant, switch.value), switch)

    def drop_switch(self, scope: str, tenant: str, value: str) -> None:
        self._switches.put((scope, tenant, value), None)

    # --- audit and state -------------------------------------------------------------------------

    def put_off(self, run: RunRow, event: Event) -> bool:  # noqa: ARG002 - what is committed is sealed
        return False

    def catch_up(self, run: RunRow) -> None:
        pass  # nothing is ever put off

    def append(self, record: AuditRecord) -> None:
        self._records.append(record)

    def records(self, tenant: str, run_id: str, after: int, limit: int) -> list[AuditRecord]:
        self._settle()
        sql = (
            "SELECT tenant, run_id, seq, line, hash, salt, body FROM records "
            "WHERE tenant = ? AND run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        )
        found = self._db.execute(sql, (tenant, run_id, after, max(limit, 0)))
        return [AuditRecord(*columns) for columns in found.fetchall()]

    def _load_state(self, key: tuple[str, str, str]) -> tuple[Any, ...] | None:
        return self._one("SELECT value, version, by, at FROM states WHERE tenant = ? AND run_id = ? AND key = ?", *key)

    def state(self, tenant: str, run_id: str, key: str) -> StateEntry | None:
        found = self._states.get((tenant, run_id, key))
        return None if found is None else StateEntry(key, text.json_value(found[0]), *found[1:])

    def states(self, tenant: str, run_id: str) -> list[StateEntry]:
        self._settle()
        sql = "SELECT key, value, version, by, at FROM states WHERE tenant = ? AND run_id = ? ORDER BY key"
        found = self._db.execute(sql, (tenant, run_id)).fetchall()
        return [StateEntry(key, text.json_value(value), *rest) for key, value, *rest in found]

    def put_state(self, tenant: str, run_id: str, entry: StateEntry) -> None:
        value = (text.json_text(entry.value), entry.version, entry.by, entry.at)
        self._states.put((tenant, run_id, entry.key), value)

    def describe(self) -> Mapping[str, Any]:
        return dict(self._facts)


def _conditions(**wanted: str | None) -> tuple[str, list[str]]:
    # The names are our own columns, the values are bound.
    given = {name: value for name, value in wanted.items() if value is not None}
    where = " AND ".join(f"{name} = ?" for name in given)
    return (f" WHERE {where}" if where else ""), list(given.values())


def _new_run(row: RunRow) -> tuple[Any, ...]:
    context = row.opened.context
    return (
        context.tenant,
        context.run_id,
        context.agent,
        context.user,
        context.session,
        row.opened.started_at,
        text.opened_text(row.opened),
        text.json_text(row.lineage),
        *text.run_changes(row),
    )


def _approval_values(request: str) -> tuple[Any, ...]:
    value = text.json_value(request)
    return value["id"], value["tenant"], value["run_id"], value["tool"], value["status"], request


_CHANGING_RUN = [name.strip() for name in text.RUN_COLUMNS.split(",")][2:]
_UPDATE_RUN = f"UPDATE runs SET {', '.join(f'{c} = ?' for c in _CHANGING_RUN)} WHERE tenant = ? AND run_id = ?"
_INSERT_RUN = (
    f"INSERT INTO runs (tenant, run_id, agent, user, session, started_at, {text.RUN_COLUMNS}) "
    f"VALUES ({', '.join('?' * (8 + len(_CHANGING_RUN)))}) "
    f"ON CONFLICT (tenant, run_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _CHANGING_RUN)}"
)
_PUT_CALL = (
    f"INSERT INTO calls ({text.CALL_COLUMNS}) VALUES ({', '.join('?' * 14)}) ON CONFLICT (tenant, key) DO UPDATE SET "
    "run_id = excluded.run_id, call_id = excluded.call_id, status = excluded.status, "
    "fingerprint = excluded.fingerprint, fence = excluded.fence, lease_until = excluded.lease_until, "
    "started_at = excluded.started_at, ended_at = excluded.ended_at, outcome = excluded.outcome, "
    "approval_id = excluded.approval_id"
)
_PUT_ACCOUNT = (
    "INSERT INTO accounts (key, used, held, warned) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET used = excluded.used, held = excluded.held, warned = excluded.warned"
)
_PUT_HOLD = "INSERT OR REPLACE INTO holds (key, accounts, amounts, lease_until) VALUES (?, ?, ?, ?)"
_PUT_APPROVAL = (
    "INSERT INTO approvals (id, tenant, run_id, tool, status, request) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET status = excluded.status, request = excluded.request"
)
# A switch that was turned off and on again within one group is a new one.
_PUT_SWITCH = "INSERT OR REPLACE INTO switches (scope, tenant, value, reason, by, at) VALUES (?, ?, ?, ?, ?, ?)"
