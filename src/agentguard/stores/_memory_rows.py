"""The rows of the memory store: plain dictionaries, which the transitions reach as a ``Transaction``.

What must stay true: rows are live objects, and one key is one object. What the store's short way
(``stores._memory_lane``) has not written down yet is written down before anything here looks: calls in flight are
kept on a :class:`Desk` until somebody else asks for them, and what was settled is owed to the accounts until
somebody reads one.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentguard.approval.text import own
from agentguard.audit.records import seal
from agentguard.budget import ledger
from agentguard.budget.ledger import Account, Hold
from agentguard.domain.approvals import ApprovalRequest, Grant
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.runs import ApprovalFilter, RunFilter, StateEntry, Switch
from agentguard.domain.usage import NANO, TOOL_PREFIX, Amounts, Meter
from agentguard.runs.lifecycle import RUN_ENDED
from agentguard.stores.rows import CallRow, RunRow

_SALTS = 256

_MINUTE_NS = 60 * NANO
"""Windows are calendar windows of whole minutes, so accounts stay the same until the next one."""

_TILLS = 4096


class Till:
    """Everything that charging the same amounts to the same meters needs, worked out once.

    What was settled here is *owed*: it still stands in the accounts as held, so that ``used + held``, which limits
    are about, is right all the time. While nobody else charges anything, holds are only counted, too.

    Attributes:
        room: How often it may be held again, as long as nothing else is.
        unwritten: Holds that do not stand in the accounts yet.
        owed: Holds that have been settled.
    """

    __slots__ = ("_bounds", "accounts", "amounts", "keys", "meters", "owed", "room", "until", "unwritten")

    def __init__(self, meters: tuple[Meter, ...], amounts: Amounts, accounts: tuple[Account, ...], until: int) -> None:
        self.meters = meters
        self.amounts = amounts
        self.accounts = accounts
        self.keys = tuple([account.key for account in accounts])
        self.until = until
        self.room = 0
        self.unwritten = 0
        self.owed = 0
        asked = dict(amounts)
        # Where nothing is asked of a limited dimension only use that is over the limit stands in the way, and that
        # cannot be while used + held is not.
        self._bounds = tuple(
            (account.used, account.held, dimension, limit, asked.get(dimension, 0))
            for meter, account in zip(meters, accounts, strict=True)
            for dimension, limit in meter.limits.items()
            if dimension in asked or not dimension.startswith(TOOL_PREFIX)
        )

    def measure(self) -> int:
        """Find out how much room there is."""
        room = 1 << 62
        for used, held, dimension, limit, amount in self._bounds:
            left = limit - used.get(dimension, 0) - held.get(dimension, 0)
            room = 0 if left < amount else min(room, left // amount) if amount else room
            if not room:
                break
        self.room = room
        return room

    def write(self) -> None:
        """Hold in the accounts what was counted only."""
        amounts = self._times(self.unwritten)
        self.unwritten = 0
        for account in self.accounts:
            ledger.hold(account, amounts)

    def pay(self) -> None:
        """Settle what is owed, as often as it was settled."""
        amounts = self._times(self.owed)
        self.owed = 0
        for account in self.accounts:
            ledger.settle(account, amounts)

    def _times(self, count: int) -> Amounts:
        return self.amounts if count == 1 else tuple([(name, amount * count) for name, amount in self.amounts])


class Desk:
    """One run as the short way sees it.

    Attributes:
        run: The row of the run.
        plain: Calls of the run may take the short way: no run above it, no end in time.
        calls: All calls of the tenant, by key.
        going: Those of them that run and hold amounts at a till, and that nobody else has asked for yet.
        numbers: Keys of the run's calls, each with its number.
        unsealed: What follows the records of the run: times and events in turn.
        tills: By the identity of the amounts, which each till keeps alive.
    """

    __slots__ = ("calls", "going", "numbers", "plain", "run", "tills", "unsealed")

    def __init__(self, run: RunRow, calls: dict[str, CallRow], going: dict[str, tuple[CallRow, Till]]) -> None:
        opened = run.opened
        self.run = run
        self.plain = len(run.lineage) == 1 and opened.deadline_ns is None and opened.working_limit_ns is None
        self.calls = calls
        self.going = going
        self.numbers: dict[str, int] = {}
        self.unsealed: list[Any] = []
        self.tills: dict[int, Till] = {}


class Tables:
    """All rows, as one :class:`~agentguard.stores.rows.Transaction`."""

    def __init__(self, keep_runs: int) -> None:
        self.now = 0
        self._keep_runs = keep_runs
        self.runs_by_key: dict[tuple[str, str], RunRow] = {}
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._below: dict[tuple[str, str], int] = {}  # runs below a run that have not ended
        self.desks: dict[tuple[str, str], Desk] = {}
        self._calls: dict[str, dict[str, CallRow]] = {}  # by tenant and key
        self._going: dict[str, dict[str, tuple[CallRow, Till]]] = {}
        self._run_of: dict[tuple[str, str], str] = {}  # the run of each call that somebody may be changing
        self.number = 0
        self._running: dict[tuple[str, str], dict[str, CallRow]] = {}
        self._accounts: dict[str, Account] = {}
        self._holds: dict[str, Hold] = {}
        self.charged: Till | None = None  # the till that alone has charged since the accounts were last looked at
        self.owing: list[Till] = []
        self._tilled: list[Desk] = []  # the desk of each till
        self._settled: OrderedDict[str, Hold] = OrderedDict()  # holds of no account; see transitions
        self._approvals: dict[str, ApprovalRequest] = {}
        self._grants: dict[tuple[str, str], Grant] = {}
        self._switches: dict[tuple[str, str, str], Switch] = {}
        self._records: dict[tuple[str, str], list[AuditRecord]] = {}
        self.at_once = True
        self.any_switch = False
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
            self.desks[key] = Desk(
                row, self._calls.setdefault(context.tenant, {}), self._going.setdefault(context.tenant, {})
            )
            for run_id in row.lineage[1:]:
                self._below[context.tenant, run_id] = self._below.get((context.tenant, run_id), 0) + 1
        if row.status in RUN_ENDED and key not in self._ended:
            self._ended[key] = None
            self.desks[key].tills.clear()
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
        self._states.pop(key, None)
        desk = self.desks.pop(key)
        for call_key in desk.numbers:
            self._stop_going(key[0], call_key)
            call = desk.calls.pop(call_key)
            self._run_of.pop((key[0], call_key), None)
            self._running.get((call.tenant, call.tool), {}).pop(call_key, None)
            if call.approval_id is not None:
                self._approvals.pop(call.approval_id, None)
        self._close_tills()  # accounts are dropped
        if len(row.lineage) == 1:
            for meter in row.opened.meters:
                if meter.scope == "run":
                    self._accounts.pop(meter.account, None)

    def call(self, tenant: str, key: str) -> CallRow | None:
        row = self._calls.get(tenant, {}).get(key)
        if row is not None:
            # From here on the row may change under the hands of who asked for it.
            self._stop_going(tenant, key)
            self._run_of.setdefault((tenant, key), row.run_id)
        return row

    def calls(self, tenant: str, run_id: str) -> list[CallRow]:
        desk = self.desks.get((tenant, run_id))
        if desk is None:
            return []
        return [desk.calls[key] for key in sorted(desk.numbers, key=desk.numbers.__getitem__)]

    def put_call(self, row: CallRow) -> None:
        key = (row.tenant, row.key)
        desk = self.desks[row.tenant, row.run_id]
        was = self._run_of.get(key)
        if was is None:
            desk.calls[row.key] = row
            desk.numbers[row.key] = self.number = self.number + 1
        elif was != row.run_id:
            desk.numbers[row.key] = self.desks[row.tenant, was].numbers.pop(row.key)
        self._run_of[key] = row.run_id
        running = self._running.setdefault((row.tenant, row.tool), {})
        if row.status == "running":
            running[row.key] = row
        else:
            running.pop(row.key, None)

    def _stop_going(self, tenant: str, key: str) -> None:
        """Write a call that came the short way down where all others are."""
        going = self._going.get(tenant)
        found = going.pop(key, None) if going else None
        if found is None:
            return
        row, till = found
        hold = Hold(f"{len(tenant)}:{tenant}{key}", till.keys, till.amounts, row.lease_until)
        self._holds[hold.key] = hold
        self._run_of[tenant, key] = row.run_id
        self._running.setdefault((tenant, row.tool), {})[key] = row

    def running(self, tenant: str, tool: str) -> int:
        now = self.now
        count = sum(1 for row in self._running.get((tenant, tool), {}).values() if now < row.lease_until)
        for row, _ in self._going.get(tenant, {}).values():
            count += row.tool == tool and now < row.lease_until
        return count

    def till(self, desk: Desk, meters: tuple[Meter, ...], amounts: Amounts) -> Till | None:
        """The till for these amounts, or ``None`` when a meter asks for more than counting."""
        till = desk.tills.get(id(amounts))
        if till is not None and till.meters is meters and self.now < till.until:
            return till
        if any(meter.warn_at is not None for meter in meters):
            return None
        if len(dict(amounts)) < len(amounts) or any(amount < 0 for _, amount in amounts):
            return None
        if len(self._tilled) >= _TILLS:
            self._close_tills()
        self._tilled.append(desk)
        accounts = tuple([self.account(ledger.account_key(meter, self.now)) for meter in meters])
        till = desk.tills[id(amounts)] = Till(meters, amounts, accounts, (self.now // _MINUTE_NS + 1) * _MINUTE_NS)
        return till

    def charge(self, till: Till) -> bool:
        """Let ``till`` count its holds; ``False`` when there is no room for one."""
        if self.charged is not None:
            self.charged.write()
        self.charged = till if till.measure() else None
        return self.charged is not None

    def _pay(self) -> None:
        if self.charged is not None:
            self.charged.write()
            self.charged = None
        for till in self.owing:
            till.pay()
        self.owing.clear()

    def _close_tills(self) -> None:
        self._pay()
        for desk in self._tilled:
            desk.tills.clear()
        self._tilled.clear()

    def account(self, key: str) -> Account:
        if self.charged is not None or self.owing:
            self._pay()
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key)
        return account

    def put_account(self, account: Account) -> None:
        pass  # rows are live objects here

    def hold(self, key: str) -> Hold | None:
        length, _, rest = key.partition(":")
        self._stop_going(rest[: int(length)], rest[int(length) :])
        return self._holds.get(key) or self._settled.get(key)

    def put_hold(self, hold: Hold) -> None:
        if hold.accounts:
            self._holds[hold.key] = hold
            return
        self._holds.pop(hold.key, None)
        self._settled[hold.key] = hold
        while next(iter(self._settled.values())).lease_until <= self.now:
            self._settled.popitem(last=False)

    def drop_hold(self, key: str) -> None:
        if self._holds.pop(key, None) is None:
            self._settled.pop(key, None)

    def lapsed_holds(self) -> list[Hold]:
        now = self.now
        for tenant, going in self._going.items():
            for key in [key for key, (row, _) in going.items() if row.lease_until <= now]:
                self._stop_going(tenant, key)
        return [hold for hold in self._holds.values() if hold.lease_until <= now]

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
        if self.at_once:
            return False
        context = run.opened.context
        self.desks[context.tenant, context.run_id].unsealed += (self.now, event)
        return True

    def catch_up(self, run: RunRow) -> None:
        context = run.opened.context
        key = (context.tenant, context.run_id)
        desk = self.desks.get(key)
        if desk is None or not desk.unsealed:
            return
        unsealed = iter(desk.unsealed)
        desk.unsealed = []
        chain = self._records.setdefault(key, [])
        seq, head = len(chain), run.audit_head
        for at, event in zip(unsealed, unsealed, strict=True):
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
