"""The rows that one operation can touch, read and locked together, as one :class:`~agentguard.stores.rows.Transaction`.

What must stay true: the operation works on copies in memory, and what it has put is written afterwards, in the same
transaction of the server, all of it or nothing. Which rows to load is foreseen by :func:`foresee` from the
operation; that is only an optimisation, because a row that was not loaded is never taken for one that does not exist: asking for
it raises :class:`Missing`, and everything is rolled back, loaded again with that row, in the order of locks, and done
again.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Any, Final

from agentguard.approval import routing
from agentguard.budget.ledger import Account, Hold
from agentguard.domain.approvals import ApprovalRequest, Grant
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import (
    Append,
    Begin,
    EndRun,
    Finish,
    GetApproval,
    GetCall,
    GetRun,
    GetState,
    Kill,
    ListApprovals,
    ListCalls,
    ListRuns,
    ListState,
    ListSwitches,
    OpenRun,
    Operation,
    PutState,
    ReadAccount,
    ReadAudit,
    ReadBudgets,
    Reserve,
    ResolveCall,
    Restore,
    Settle,
    Vote,
)
from agentguard.domain.runs import ApprovalFilter, RunFilter, StateEntry, Switch
from agentguard.domain.usage import Meter
from agentguard.stores import _row_text as text
from agentguard.stores._postgres_schema import CALL_COLUMNS, RUN_COLUMNS, Rows, Statement
from agentguard.stores.rows import CallRow, RunRow
from agentguard.stores.transitions import _hold_key

Query = tuple[Any, ...]
"""A question over many rows: its name and arguments."""

_LATER: Final = 2**63 - 1
_opened = functools.lru_cache(maxsize=1024)(text.opened_value)


class Missing(Exception):
    """An operation asked for something that was not loaded; ``name`` and ``value`` say what to load as well."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value


class Wants:
    """What to load for one operation.

    Attributes:
        spec: The argument of the function ``load_1``.
        queries: Questions over many rows, asked in the same transaction.
    """

    def __init__(self, spec: dict[str, Any], queries: tuple[Query, ...] = ()) -> None:
        self.spec = spec
        self.queries = list(queries)

    def add(self, missing: Missing) -> None:
        """Load what was missing as well."""
        if missing.name == "query":
            self.queries.append(missing.value)
        elif missing.value is True:
            self.spec[missing.name] = True
        else:
            self.spec[missing.name] = [*self.spec.get(missing.name, ()), missing.value]

    def statements(self, schema: str, now: int | None, *, lock: bool) -> list[Statement]:
        """The statements that load it."""
        load = f'SELECT "{schema}".load_1($1::bigint, $2::text::jsonb, $3)'
        return [(load, (now, text.json_text(self.spec), lock)), *(_asking(schema, query) for query in self.queries)]


def meters_text(meters: tuple[Meter, ...]) -> str:
    """Meters as the functions of the server read them: account, window, limits, and thresholds as whole numbers."""
    return text.json_text(
        [
            {
                "a": meter.account,
                "p": meter.per,
                "l": dict(meter.limits),
                # used >= share * limit, as ledger.crossings says, holds for integers from the next one up
                "w": {}
                if meter.warn_at is None
                else {d: math.ceil(meter.warn_at * n) for d, n in meter.limits.items()},
            }
            for meter in meters
        ]
    )


def _windows(meters: tuple[Meter, ...]) -> list[dict[str, str | None]]:
    return [{"a": meter.account, "p": meter.per} for meter in meters]


def foresee(op: Operation[Any]) -> Wants:
    """What an operation is going to ask for."""
    match op:
        case Begin():
            spec: dict[str, Any] = {
                "tenant": op.tenant,
                "runs": [op.run_id],
                "calls": [op.key],
                "holds": [_hold_key(op.tenant, op.key)],
                "meters": _windows(op.meters),
                "names": [name for name in (op.agent, op.user, op.tool) if name],
            }
            if op.concurrency is not None:
                spec["tool"] = op.tool
            if op.approval is not None:
                spec["grants"] = list(routing.grant_keys(op, op.approval))
            return Wants(spec)
        case Finish(tenant, run_id, key):
            spec = {"tenant": tenant, "runs": [run_id], "calls": [key], "holds": [_hold_key(tenant, key)]}
            spec["run_meters"] = True
            if op.labels:
                spec["lineage"] = True
            return Wants(spec)
        case ResolveCall(tenant, key):
            return Wants({"tenant": tenant, "calls": [key], "holds": [_hold_key(tenant, key)]})
        case Reserve(tenant, run_id, key) | Settle(tenant, run_id, key):
            spec = {
                "tenant": tenant,
                "runs": [run_id],
                "holds": [_hold_key(tenant, key)],
                "meters": _windows(op.meters),
            }
            if isinstance(op, Reserve):
                spec["names"] = [name for name in (op.agent, op.user) if name]
            return Wants(spec)
        case OpenRun(record):
            context = record.context
            runs = [name for name in (context.run_id, context.parent) if name is not None]
            names = [name for name in (context.agent, context.user, context.run_id) if name]
            return Wants({"tenant": context.tenant, "runs": runs, "names": names})
        case Append(tenant, run_id) | EndRun(tenant, run_id):
            return Wants({"tenant": tenant, "runs": [run_id]})
        case Vote():
            return Wants({"tenant": op.tenant, "vote": op.id})
        case PutState(tenant, run_id, key):
            return Wants({"tenant": tenant, "runs": [run_id], "lineage": True, "states": [key]})
        case Kill(_, tenant, value) | Restore(_, tenant, value):
            return Wants({"tenant": tenant, "names": [value], "turning": True})
        case _:
            return _reading(op)


def _reading(op: Operation[Any]) -> Wants:
    match op:
        case GetRun(None, run_id):
            return Wants({"find": run_id})
        case GetRun(tenant, run_id):
            return Wants({"tenant": tenant, "runs": [run_id]})
        case ListRuns(wanted):
            return Wants({}, (("runs", wanted),))
        case GetCall(tenant, key):
            return Wants({"tenant": tenant, "calls": [key]})
        case ListCalls(tenant, run_id):
            return Wants({}, (("calls", tenant, run_id),))
        case GetApproval(approval_id):
            return Wants({"approvals": [approval_id]})
        case ListApprovals(wanted):
            return Wants({}, (("approvals", wanted),))
        case ReadBudgets(meters):
            return Wants({"meters": _windows(meters)})
        case ReadAccount(account):
            return Wants({"accounts": [account]})
        case ReadAudit(tenant, run_id, after, limit):
            return Wants({}, (("records", tenant, run_id, after, limit),))
        case GetState(tenant, run_id, key):
            return Wants({"tenant": tenant, "runs": [run_id], "states": [key]})
        case ListState(tenant, run_id):
            return Wants({"tenant": tenant, "runs": [run_id]})
        case ListSwitches(tenant):
            return Wants({}, (("switches", tenant),))
        case _:
            return Wants({})


def _asking(schema: str, query: Query) -> Statement:
    s = f'"{schema}"'
    match query:
        case ("runs", RunFilter() as wanted):
            where, values = _conditions(
                tenant=wanted.tenant, agent=wanted.agent, user=wanted.user, session=wanted.session, status=wanted.status
            )
            order = f"ORDER BY started_at DESC, n DESC LIMIT ${len(values) + 1}"
            return f"SELECT {RUN_COLUMNS} FROM {s}.runs{where} {order}", (*values, max(wanted.limit, 0))
        case ("calls", tenant, run_id):
            return f"SELECT {CALL_COLUMNS} FROM {s}.calls WHERE tenant = $1 AND run_id = $2 ORDER BY n", (
                tenant,
                run_id,
            )
        case ("approvals", ApprovalFilter() as wanted):
            # A stored status changes by itself only into "expired".
            status = None if wanted.status == "expired" else wanted.status
            where, values = _conditions(tenant=wanted.tenant, run_id=wanted.run_id, tool=wanted.tool, status=status)
            return f"SELECT request FROM {s}.approvals{where} ORDER BY n", values
        case ("records", tenant, run_id, after, limit):
            sql = (
                f"SELECT tenant, run_id, seq, line, hash, salt, body FROM {s}.records "
                "WHERE tenant = $1 AND run_id = $2 AND seq > $3 ORDER BY seq LIMIT $4"
            )
            return sql, (tenant, run_id, after, max(limit, 0))
        case ("states", tenant, run_id):
            sql = f"SELECT key, value, version, by, at FROM {s}.states WHERE tenant = $1 AND run_id = $2 ORDER BY key"
            return sql, (tenant, run_id)
        case ("switches", None):
            return f"SELECT scope, tenant, value, reason, by, at FROM {s}.switches ORDER BY n", ()
        case ("switches", tenant):
            sql = f"SELECT scope, tenant, value, reason, by, at FROM {s}.switches WHERE tenant IN ('', $1) ORDER BY n"
            return sql, (tenant,)
        case _:
            raise TypeError(f"no question to a store: {query[0]!r}")


def _conditions(**wanted: str | None) -> tuple[str, tuple[str, ...]]:
    # The names are our own columns, the values are bound.
    given = {name: value for name, value in wanted.items() if value is not None}
    where = " AND ".join(f'"{name}" = ${number}' for number, name in enumerate(given, 1))
    return (f" WHERE {where}" if where else ""), tuple(given.values())


class PostgresTables:
    """What was loaded, and what an operation makes of it; see :class:`~agentguard.stores.rows.Transaction`.

    Args:
        wants: What was asked for.
        rows: What came back, statement by statement.
        facts: What ``describe`` says.
    """

    def __init__(self, wants: Wants, rows: list[Rows], facts: Mapping[str, Any]) -> None:
        found: dict[str, Any] = rows[0][0][0]
        self._found = found
        self._wants = wants
        self._facts = facts
        self._answers = list(zip(wants.queries, rows[1:], strict=True))
        self.now: int = found["now"]
        self._tenant: str | None = found["tenant"]
        self._runs: dict[str, RunRow | None] = dict.fromkeys(found["asked_runs"])
        for run_id, *columns in found["runs"] or ():
            self._runs[run_id] = text.run_row(_opened(columns[0]), tuple(columns))
        self._locked = frozenset(found["locked"])
        self._fresh_runs = {run_id for run_id, row in self._runs.items() if row is None}
        self._calls: dict[str, CallRow | None] = dict.fromkeys(wants.spec.get("calls", ()))
        for columns in found["calls"] or ():
            self._calls[columns[2]] = CallRow(*columns)
        self._accounts: dict[str, Account] = {key: Account(key) for key in found["asked_accounts"]}
        for key, used, held, warned in found["accounts"] or ():
            self._accounts[key] = text.account_value(key, (used, held, warned))
        self._holds: dict[str, Hold | None] = dict.fromkeys(found["asked_holds"])
        for columns in found["holds"] or ():
            self._holds[columns[0]] = text.hold_value(columns)
        # Requests and states hold values that callers could change: kept as text, every reader gets its own.
        self._approvals: dict[str, str | None] = dict.fromkeys(found["asked_approvals"])
        self._approvals.update(found["approvals"] or ())
        self._grants: dict[str, Grant | None] = dict.fromkeys(wants.spec.get("grants", ()))
        for columns in found["grants"] or ():
            self._grants[columns[2]] = Grant(*columns)
        self._switches: dict[tuple[str, str, str], Switch | None] = {
            (columns[0], columns[1], columns[2]): Switch(*columns) for columns in found["switches"] or ()
        }
        self._states: dict[tuple[str, str, str], tuple[Any, ...]] = {
            (columns[0], columns[1], columns[2]): tuple(columns[3:]) for columns in found["states"] or ()
        }
        self._put: dict[tuple[str, Any], None] = {}
        self._records: list[AuditRecord] = []

    def _own(self, tenant: str, name: str, value: str) -> None:
        # Rows of one tenant are loaded for one operation; nothing may be mistaken for those of another.
        if tenant != self._tenant:
            raise RuntimeError(f"an operation of tenant {self._tenant} asked for {name} {value} of {tenant}")

    def _asked(self, *query: Any) -> Rows:
        if any(kind == query[0][:-1] for kind, _ in self._put) and query[0] != "approvals":
            raise RuntimeError(f"an operation asked for {query[0]} after it had changed one")
        for known, rows in self._answers:
            if known == query:
                return rows
        raise Missing("query", query)

    # --- runs and calls --------------------------------------------------------------------------

    def salt(self) -> str:
        return os.urandom(16).hex()

    def run(self, tenant: str, run_id: str) -> RunRow | None:
        self._own(tenant, "run", run_id)
        if run_id not in self._runs:
            raise Missing("runs", run_id)
        return self._runs[run_id]

    def find_run(self, run_id: str) -> RunRow | None:
        return self._runs.get(run_id)

    def runs(self, wanted: RunFilter) -> list[RunRow]:
        return [text.run_row(_opened(columns[0]), columns) for columns in self._asked("runs", wanted)]

    def put_run(self, row: RunRow) -> None:
        run_id = row.opened.context.run_id
        if run_id not in self._locked:
            raise Missing("runs", run_id)
        self._runs[run_id] = row
        self._put["run", run_id] = None

    def call(self, tenant: str, key: str) -> CallRow | None:
        self._own(tenant, "call", key)
        if key not in self._calls:
            raise Missing("calls", key)
        return self._calls[key]

    def calls(self, tenant: str, run_id: str) -> list[CallRow]:
        return [CallRow(*columns) for columns in self._asked("calls", tenant, run_id)]

    def put_call(self, row: CallRow) -> None:
        self._calls[row.key] = row
        self._put["call", row.key] = None

    def running(self, tenant: str, tool: str) -> int:
        self._own(tenant, "tool", tool)
        if self._found["running"] is None:
            raise Missing("tool", tool)
        return int(self._found["running"])

    # --- budgets ---------------------------------------------------------------------------------

    def account(self, key: str) -> Account:
        if key not in self._accounts:
            raise Missing("accounts", key)
        return self._accounts[key]

    def put_account(self, account: Account) -> None:
        self._put["account", account.key] = None

    def hold(self, key: str) -> Hold | None:
        if key not in self._holds:
            raise Missing("holds", key)
        return self._holds[key]

    def put_hold(self, hold: Hold) -> None:
        self._holds[hold.key] = hold
        self._put["hold", hold.key] = None

    def drop_hold(self, key: str) -> None:
        self._holds[key] = None
        self._put["hold", key] = None

    def lapsed_holds(self) -> list[Hold]:
        if self._found["lapsed"] is None:
            raise Missing("lapsed", True)
        found = (self._holds[key] for key in self._found["lapsed"])
        return [hold for hold in found if hold is not None and hold.lease_until <= self.now]

    # --- approvals -------------------------------------------------------------------------------

    def approval(self, approval_id: str) -> ApprovalRequest | None:
        if approval_id not in self._approvals:
            raise Missing("approvals", approval_id)
        found = self._approvals[approval_id]
        return None if found is None else routing.from_json(found)

    def approvals(self, wanted: ApprovalFilter) -> list[ApprovalRequest]:
        found = [routing.from_json(request) for (request,) in self._asked("approvals", wanted)]
        put = {key: self.approval(key) for kind, key in self._put if kind == "approval"}
        mine = [put.pop(request.id, None) or request for request in found]
        return mine + [
            request
            for request in put.values()
            if request is not None
            and wanted.tenant in (None, request.tenant)
            and wanted.run_id in (None, request.run_id)
            and wanted.tool in (None, request.tool)
        ]

    def put_approval(self, request: ApprovalRequest) -> None:
        self._approvals[request.id] = routing.to_json(request)
        self._put["approval", request.id] = None

    def grant(self, tenant: str, digest: str) -> Grant | None:
        self._own(tenant, "grant", digest)
        if digest not in self._grants:
            raise Missing("grants", digest)
        return self._grants[digest]

    def put_grant(self, grant: Grant) -> None:
        self._grants[grant.digest] = grant
        self._put["grant", grant.digest] = None

    # --- switches --------------------------------------------------------------------------------

    def switched(self) -> bool:
        return True  # those that are not asked for were not loaded, so only asking for each can tell

    def switch(self, scope: str, tenant: str, value: str) -> Switch | None:
        if tenant:
            self._own(tenant, "switch", value)
        names = self._wants.spec.get("names")
        # Those of everything, of the tenant and of the loaded runs' lineages come with any name.
        if names is None or (value and value not in names and (scope != "run" or value not in self._runs)):
            raise Missing("names", value)
        return self._switches.get((scope, tenant, value))

    def switches(self, tenant: str | None) -> list[Switch]:
        return [Switch(*columns) for columns in self._asked("switches", tenant)]

    def put_switch(self, switch: Switch) -> None:
        key = (switch.scope, switch.tenant, switch.value)
        self._switches[key] = switch
        self._put["switch", key] = None

    def drop_switch(self, scope: str, tenant: str, value: str) -> None:
        self._switches[scope, tenant, value] = None
        self._put["switch", (scope, tenant, value)] = None

    # --- audit and state -------------------------------------------------------------------------

    def append(self, record: AuditRecord) -> None:
        self._records.append(record)

    def put_off(self, run: RunRow, event: Event) -> bool:  # noqa: ARG002 - what is committed is sealed
        return False

    def catch_up(self, run: RunRow) -> None:
        pass  # nothing is ever put off

    def records(self, tenant: str, run_id: str, after: int, limit: int) -> list[AuditRecord]:
        return [AuditRecord(*columns) for columns in self._asked("records", tenant, run_id, after, limit)]

    def state(self, tenant: str, run_id: str, key: str) -> StateEntry | None:
        self._own(tenant, "state", key)
        if key not in self._wants.spec.get("states", ()):
            raise Missing("states", key)
        found = self._states.get((tenant, run_id, key))
        return None if found is None else StateEntry(key, text.json_value(found[0]), *found[1:])

    def states(self, tenant: str, run_id: str) -> list[StateEntry]:
        found = self._asked("states", tenant, run_id)
        return [StateEntry(key, text.json_value(value), *rest) for key, value, *rest in found]

    def put_state(self, tenant: str, run_id: str, entry: StateEntry) -> None:
        key = (tenant, run_id, entry.key)
        self._states[key] = (text.json_text(entry.value), entry.version, entry.by, entry.at)
        self._put["state", key] = None

    def describe(self) -> Mapping[str, Any]:
        return dict(self._facts)

    # --- writing ---------------------------------------------------------------------------------

    def changes(self, schema: str) -> list[Statement]:
        """The statements that write what was put."""
        s = f'"{schema}"'
        statements = [self._writing(s, kind, key) for kind, key in self._put]
        if any(hold is not None and not hold.accounts for hold in map(self._holds.get, self._keys("hold"))):
            # Whoever remembers a settlement forgets some that nobody needs any more.
            statements.append((_FORGET.format(s=s), (self.now,)))
        statements += [
            (
                f"INSERT INTO {s}.records (tenant, run_id, seq, line, hash, salt, body) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                (r.tenant, r.run_id, r.seq, r.line, r.hash, r.salt, r.body),
            )
            for r in self._records
        ]
        return statements

    def _keys(self, kind: str) -> list[Any]:
        return [key for one, key in self._put if one == kind]

    def _writing(self, s: str, kind: str, key: Any) -> Statement:
        match kind:
            case "run":
                return self._writing_run(s, key)
            case "call":
                call = self._calls[key]
                assert call is not None
                return _PUT_CALL.format(s=s), text.call_values(call)
            case "account":
                _, used, held, warned = text.account_values(self._accounts[key])
                sql = "SET used = $2::text::jsonb, held = $3::text::jsonb, warned = $4::text::jsonb WHERE key = $1"
                return f"UPDATE {s}.accounts {sql}", (key, used, held, warned)
            case "hold":
                hold = self._holds[key]
                if hold is None:
                    return f"DELETE FROM {s}.holds WHERE key = $1", (key,)
                amounts = text.json_text(hold.amounts)
                return _PUT_HOLD.format(s=s), (key, list(hold.accounts), amounts, hold.lease_until)
            case "approval":
                request = self._approvals[key]
                assert request is not None
                v = text.json_value(request)
                values = (v["id"], v["tenant"], v["run_id"], v["tool"], v["status"], request)
                return _PUT_APPROVAL.format(s=s), values
            case "grant":
                grant = self._grants[key]
                assert grant is not None
                return _PUT_GRANT.format(s=s), (grant.tenant, grant.digest, grant.id, grant.expires_at)
            case "switch":
                switch = self._switches[key]
                if switch is None:
                    return f"DELETE FROM {s}.switches WHERE scope = $1 AND tenant = $2 AND value = $3", key
                sql = f"INSERT INTO {s}.switches (scope, tenant, value, reason, by, at) VALUES ({_marks(6)})"
                return sql, (switch.scope, switch.tenant, switch.value, switch.reason, switch.by, switch.at)
            case _:
                return _PUT_STATE.format(s=s), (*key, *self._states[key])

    def _writing_run(self, s: str, run_id: str) -> Statement:
        row = self._runs[run_id]
        assert row is not None
        context, opened = row.opened.context, row.opened
        status, _, *rest = text.run_changes(row)
        changes = (status, list(row.labels), *rest)
        if run_id not in self._fresh_runs:
            return _UPDATE_RUN.format(s=s), (*changes, context.tenant, run_id)
        values = (
            context.tenant,
            run_id,
            context.agent,
            context.user,
            context.session,
            opened.started_at,
            None if opened.deadline_ns is None else min(opened.deadline_ns, _LATER),
            # More than a century is no limit, and must not overflow when it is added to a time.
            None if opened.working_limit_ns is None else min(opened.working_limit_ns, _LATER // 2),
            meters_text(opened.meters),
            text.opened_text(opened),
            list(row.lineage),
        )
        return _INSERT_RUN.format(s=s), (*values, *changes)


def _marks(count: int) -> str:
    return ", ".join(f"${number}" for number in range(1, count + 1))


_CHANGING: Final = (
    "status", "labels", "version", "active", "pending", "paused_ns", "paused_at", "audit_seq", "audit_head",
    "last_call", "repeats", "ended_at", "stop_reason", "result",
)  # fmt: skip
_UPDATE_RUN: Final = (
    f"UPDATE {{s}}.runs SET {', '.join(f'{name} = ${number}' for number, name in enumerate(_CHANGING, 1))} "
    f"WHERE tenant = ${len(_CHANGING) + 1} AND run_id = ${len(_CHANGING) + 2}"
)
_INSERT_RUN: Final = (
    'INSERT INTO {s}.runs (tenant, run_id, agent, "user", session, started_at, deadline_ns, working_ns, meters, opened, '
    f"lineage, {', '.join(_CHANGING)}) VALUES ({_marks(11 + len(_CHANGING)).replace('$9,', '$9::text::jsonb,')})"
)
_PUT_CALL: Final = (
    f"INSERT INTO {{s}}.calls ({CALL_COLUMNS}) VALUES ({_marks(14)}) ON CONFLICT (tenant, key) DO UPDATE SET "
    "run_id = excluded.run_id, call_id = excluded.call_id, status = excluded.status, "
    "fingerprint = excluded.fingerprint, fence = excluded.fence, lease_until = excluded.lease_until, "
    "started_at = excluded.started_at, ended_at = excluded.ended_at, outcome = excluded.outcome, "
    "approval_id = excluded.approval_id"
)
_PUT_HOLD: Final = (
    "INSERT INTO {s}.holds (key, accounts, amounts, lease_until) VALUES ($1, $2, $3, $4) ON CONFLICT (key) DO UPDATE "
    "SET accounts = excluded.accounts, amounts = excluded.amounts, lease_until = excluded.lease_until"
)
_FORGET: Final = (
    "DELETE FROM {s}.holds WHERE key IN (SELECT key FROM {s}.holds WHERE lease_until <= $1 AND accounts = '{{}}' "
    "ORDER BY lease_until LIMIT 20 FOR UPDATE SKIP LOCKED)"
)
_PUT_APPROVAL: Final = (
    "INSERT INTO {s}.approvals (id, tenant, run_id, tool, status, request) VALUES ($1, $2, $3, $4, $5, $6) "
    "ON CONFLICT (id) DO UPDATE SET status = excluded.status, request = excluded.request"
)
_PUT_GRANT: Final = (
    "INSERT INTO {s}.grants (tenant, digest, id, expires_at) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (tenant, digest) DO UPDATE SET id = excluded.id, expires_at = excluded.expires_at"
)
_PUT_STATE: Final = (
    f"INSERT INTO {{s}}.states (tenant, run_id, key, value, version, by, at) VALUES ({_marks(7)}) "
    "ON CONFLICT (tenant, run_id, key) DO UPDATE SET value = excluded.value, version = excluded.version, "
    "by = excluded.by, at = excluded.at"
)
