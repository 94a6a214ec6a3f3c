"""The memory store: the reference of all stores, and the fastest. Everything is gone with the process.

One lock around each operation makes it a transaction: the transitions check everything before they write.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from agentguard.approval.text import own
from agentguard.audit.records import seal
from agentguard.budget.ledger import Account, Hold
from agentguard.domain.approvals import ApprovalRequest, Grant
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import Begin, Finish, Operation
from agentguard.domain.runs import ApprovalFilter, RunFilter, StateEntry, Switch
from agentguard.errors import StoreUnavailable
from agentguard.protocols import Clock
from agentguard.runs.lifecycle import RUN_ENDED
from agentguard.stores._memory_lane import Wallets, admit, settle
from agentguard.stores.rows import CallRow, RunRow
from agentguard.stores.timing import SystemClock
from agentguard.stores.transitions import begin, finish, perform

T = TypeVar("T")

_SALTS = 256


class Tables:
    """All rows, as one :class:`~agentguard.stores.rows.Transaction`."""

    def __init__(self, keep_runs: int) -> None:
        self.now = 0
        self._keep_runs = keep_runs
        self.runs_by_key: dict[tuple[str, str], RunRow] = {}
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._below: dict[tuple[str, str], int] = {}  # runs below a run that have not ended
        self.calls_by_key: dict[tuple[str, str], CallRow] = {}
        self._calls_of: dict[tuple[str, str], dict[str, int]] = {}  # keys of a run's calls, each with its number
        self._run_of: dict[tuple[str, str], str] = {}
        self._number = 0
        self._running: dict[tuple[str, str], dict[str, CallRow]] = {}
        self._accounts: dict[str, Account] = {}
        self.holds_by_key: dict[str, Hold] = {}
        self._settled: OrderedDict[str, Hold] = OrderedDict()  # holds of no account; see transitions
        self._approvals: dict[str, ApprovalRequest] = {}
        self._grants: dict[tuple[str, str], Grant] = {}
        self._switches: dict[tuple[str, str, str], Switch] = {}
        self._records: dict[tuple[str, str], list[AuditRecord]] = {}
        self._unsealed: dict[tuple[str, str], list[tuple[int, Event]]] = {}  # what follows the records of a run
        self.at_once = True
        self.any_switch = False
        self.wallets = Wallets()
        self._states: dict[tuple[str, str], dict[str, StateEntry]] = {}
        self._salts: list[str] = []

    def salt(self) -> str:
        if not self._salts:
            block = os.urandom(16 * _SALTS).hex()
            self._salts = [block[i : i + 32] for i in range(0, len(block), 32)]
        return self._salts.pop()

    def forget_salts(self) -> None:
        self._salts = []

    def run(self, tenant: str, run_id: str) -> RunRow | None:
        return self.runs_by_key.get((tenant, run_id))

    def find_run(self, run_id: str) -> RunRow | None:
        found = [row for (_, one), row in self.runs_by_key.items() if one == run_id]
        return found[0] if len(found) == 1 else None

    def runs(self, wanted: RunFilter) -> list[RunRow]:
        found = []
        for row in reversed(self.runs_by_key.values()):
            context = row.opened.context
            if (
                wanted.tenant in (None, context.tenant)
                and wanted.agent in (None, context.agent)
                and wanted.user in (None, context.user)
                and wanted.session in (None, context.session)
                and wanted.status in (None, row.status)
            ):
                found.append(row)
        return sorted(found, key=lambda row: -row.opened.started_at)[: wanted.limit]

    def put_run(self, row: RunRow) -> None:
        context = row.opened.context
        key = (context.tenant, context.run_id)
        if key not in self.runs_by_key:
            self.runs_by_key[key] = row
            for run_id in row.lineage[1:]:
                self._below[context.tenant, run_id] = self._below.get((context.tenant, run_id), 0) + 1
        if row.status in RUN_ENDED and key not in self._ended:
            self._ended[key] = None
            for run_id in row.lineage[1:]:
                self._below[context.tenant, run_id] -= 1
            if len(self._ended) > self._keep_runs:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._ended.popitem(last=False)
        if self._below.get(key):
            # Runs below it still charge its accounts; forgotten accounts would be full again.
            self._ended[key] = None
            return
        self._below.pop(key, None)
        row = self.runs_by_key.pop(key)
        self._records.pop(key, None)
        self._unsealed.pop(key, None)
        self._states.pop(key, None)
        for call_key in self._calls_of.pop(key, ()):
            call = self.calls_by_key.pop((key[0], call_key))
            self._run_of.pop((key[0], call_key))
            self._running.get((call.tenant, call.tool), {}).pop(call_key, None)
            if call.approval_id is not None:
                self._approvals.pop(call.approval_id, None)
        self.wallets.forget()
        if len(row.lineage) == 1:
            for meter in row.opened.meters:
                if meter.scope == "run":
                    self._accounts.pop(meter.account, None)

    def call(self, tenant: str, key: str) -> CallRow | None:
        return self.calls_by_key.get((tenant, key))

    def calls(self, tenant: str, run_id: str) -> list[CallRow]:
        numbers = self._calls_of.get((tenant, run_id), {})
        return [self.calls_by_key[tenant, key] for key in sorted(numbers, key=numbers.__getitem__)]

    def put_call(self, row: CallRow) -> None:
        key = (row.tenant, row.key)
        was = self._run_of.get(key)
        if was != row.run_id:
            if was is None:
                self.calls_by_key[key] = row
                number = self._number = self._number + 1
            else:
                number = self._calls_of[row.tenant, was].pop(row.key)
            self._run_of[key] = row.run_id
            mine = self._calls_of.get((row.tenant, row.run_id))
            if mine is None:
                mine = self._calls_of[row.tenant, row.run_id] = {}
            mine[row.key] = number
        running = self._running.get((row.tenant, row.tool))
        if running is None:
            running = self._running[row.tenant, row.tool] = {}
        if row.status == "running":
            running[row.key] = row
        else:
            running.pop(row.key, None)

    def add_call(self, place: tuple[str, str], row: CallRow) -> None:
        """Keep a call that is new and running."""
        self.calls_by_key[place] = row
        self._number += 1
        self._run_of[place] = row.run_id
        mine = self._calls_of.get((row.tenant, row.run_id))
        if mine is None:
            mine = self._calls_of[row.tenant, row.run_id] = {}
        mine[row.key] = self._number
        running = self._running.get((row.tenant, row.tool))
        if running is None:
            running = self._running[row.tenant, row.tool] = {}
        running[row.key] = row

    def ended_call(self, row: CallRow) -> None:
        """A call that was running is so no more."""
        self._running[row.tenant, row.tool].pop(row.key, None)

    def running(self, tenant: str, tool: str) -> int:
        rows = self._running.get((tenant, tool), {})
        return sum(1 for row in rows.values() if self.now < row.lease_until)

    def account(self, key: str) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key)
        return account

    def put_account(self, account: Account) -> None:
        pass  # rows are live objects here

    def hold(self, key: str) -> Hold | None:
        return self.holds_by_key.get(key) or self._settled.get(key)

    def put_hold(self, hold: Hold) -> None:
        if hold.accounts:
            self.holds_by_key[hold.key] = hold
            return
        self.holds_by_key.pop(hold.key, None)
        self._settled[hold.key] = hold
        while next(iter(self._settled.values())).lease_until <= self.now:
            self._settled.popitem(last=False)

    def drop_hold(self, key: str) -> None:
        if self.holds_by_key.pop(key, None) is None:
            self._settled.pop(key, None)

    def lapsed_holds(self) -> list[Hold]:
        return [hold for hold in self.holds_by_key.values() if hold.lease_until <= self.now]

    def approval(self, approval_id: str) -> ApprovalRequest | None:
        request = self._approvals.get(approval_id)
        return None if request is None else _own_request(request)

    def approvals(self, wanted: ApprovalFilter) -> list[ApprovalRequest]:
        return [
            _own_request(request)
            for request in self._approvals.values()
            if wanted.tenant in (None, request.tenant)
            and wanted.run_id in (None, request.run_id)
            and wanted.tool in (None, request.tool)
        ]

    def put_approval(self, request: ApprovalRequest) -> None:
        self._approvals[request.id] = _own_request(request)

    def grant(self, tenant: str, digest: str) -> Grant | None:
        return self._grants.get((tenant, digest))

    def put_grant(self, grant: Grant) -> None:
        if len(self._grants) >= self._keep_runs:
            self._grants = {key: one for key, one in self._grants.items() if self.now < one.expires_at}
        self._grants[grant.tenant, grant.digest] = grant

    def switched(self) -> bool:
        return bool(self._switches)

    def switch(self, scope: str, tenant: str, value: str) -> Switch | None:
        return self._switches.get((scope, tenant, value))

    def switches(self, tenant: str | None) -> list[Switch]:
        return [s for s in self._switches.values() if tenant is None or s.tenant in ("", tenant)]

    def put_switch(self, switch: Switch) -> None:
        self._switches[switch.scope, switch.tenant, switch.value] = switch
        self.any_switch = True

    def drop_switch(self, scope: str, tenant: str, value: str) -> None:
        del self._switches[scope, tenant, value]
        self.any_switch = bool(self._switches)

    def append(self, record: AuditRecord) -> None:
        chain = self._records.get((record.tenant, record.run_id))
        if chain is None:
            chain = self._records[record.tenant, record.run_id] = []
        chain.append(record)

    def put_off(self, run: RunRow, event: Event) -> bool:
        context = run.opened.context
        key = (context.tenant, context.run_id)
        if self.at_once:
            return False
        events = self._unsealed.get(key)
        if events is None:
            events = self._unsealed[key] = []
        events.append((self.now, event))
        return True

    def catch_up(self, run: RunRow) -> None:
        context = run.opened.context
        key = (context.tenant, context.run_id)
        events = self._unsealed.pop(key, None)
        if not events:
            return
        chain = self._records.setdefault(key, [])
        seq, head = len(chain), run.audit_head
        for at, event in events:
            seq += 1
            record = seal(*key, seq, head, at, event, self.salt())
            head = record.hash
            chain.append(record)
        run.audit_head = head

    def records(self, tenant: str, run_id: str, after: int, limit: int) -> list[AuditRecord]:
        run = self.runs_by_key.get((tenant, run_id))
        if run is not None:
            self.catch_up(run)
        return self._records.get((tenant, run_id), [])[after : after + limit]

    def state(self, tenant: str, run_id: str, key: str) -> StateEntry | None:
        entry = self._states.get((tenant, run_id), {}).get(key)
        return None if entry is None else replace(entry, value=own(entry.value))

    def states(self, tenant: str, run_id: str) -> list[StateEntry]:
        return [replace(e, value=own(e.value)) for _, e in sorted(self._states.get((tenant, run_id), {}).items())]

    def put_state(self, tenant: str, run_id: str, entry: StateEntry) -> None:
        self._states.setdefault((tenant, run_id), {})[entry.key] = replace(entry, value=own(entry.value))

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "memory", "durable": False, "runs": len(self.runs_by_key), "processes": 1}


def _own_request(request: ApprovalRequest) -> ApprovalRequest:
    # What a caller does to the values of a request must not reach the one that is kept.
    return replace(
        request,
        arguments=own(request.arguments),
        proposed=own(request.proposed),
        edited=own(request.edited),
        extra=own(request.extra),
    )


class MemoryStore:
    """Keeps everything in this process; see :class:`~agentguard.protocols.Store`.

    Args:
        clock: Replaces the machine's clock (tests).
        keep_runs: Ended runs that are kept for inspection; the oldest are forgotten beyond that.
    """

    instant = True
    """Operations wait for nothing but a short lock, so the event loop may perform them in its own thread."""

    def __init__(self, clock: Clock | None = None, *, keep_runs: int = 10_000) -> None:
        self._clock = clock or SystemClock()
        self._now = self._clock.now_ns
        self._lock = threading.Lock()
        self._tables = Tables(keep_runs)
        self._closed = False
        if hasattr(os, "register_at_fork"):
            # A lock held by another thread at fork time would stay locked in the child for ever.
            this: weakref.ref[MemoryStore] = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forked(this))

    def seal_later(self) -> None:
        """Seal the records of calls when somebody looks instead of when they are written.

        For an owner without sinks: answers then leave such records out. The chain is the same.
        """
        self._tables.at_once = False

    def perform(self, operation: Operation[T]) -> T:
        """Carry out one operation.

        Raises:
            StoreUnavailable: The store was closed.
            StoreConflict: As the operation says.
            ApprovalError: As the operation says.
        """
        if self._closed:
            raise StoreUnavailable("The memory store is closed.")
        tables = self._tables
        if not self._lock.acquire(blocking=False):
            _take(self._lock)
        try:
            tables.now = self._now()
            kind = type(operation)
            if kind is Begin:
                asked = cast("Begin", operation)
                return cast("T", admit(tables, asked) or begin(tables, asked))
            if kind is Finish:
                said = cast("Finish", operation)
                return cast("T", settle(tables, said) or finish(tables, said))
            return cast("T", perform(tables, operation))
        finally:
            self._lock.release()

    async def aperform(self, operation: Operation[T]) -> T:
        """Carry out one operation; it never waits for anything but the lock of another thread."""
        return self.perform(operation)

    def close(self) -> None:
        """Refuse further operations."""
        self._closed = True


def _take(lock: threading.Lock) -> None:
    """Take a lock that is held for microseconds, without queueing for it.

    A thread that queues is given the lock before it can run (it still waits for the interpreter), and all
    others then queue too: with 8 threads that convoy cuts the rate to a third. Letting others run and trying
    again does not form one.
    """
    for _ in range(1000):
        time.sleep(0)
        if lock.acquire(blocking=False):
            return
    lock.acquire()


def _forked(this: weakref.ref[MemoryStore]) -> None:
    store = this()
    if store is not None:
        store._lock = threading.Lock()
