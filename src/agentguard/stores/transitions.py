"""The meaning of every store operation, written once.

Each function runs inside one transaction of the store that calls it. What must stay true: everything is
checked before anything is written (the memory store cannot roll back), and every change that matters is
recorded in the run's audit chain in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, assert_never

from agentguard import canonical
from agentguard.approval import routing
from agentguard.approval.text import own
from agentguard.audit.records import seal
from agentguard.budget import ledger
from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import CallRecord, CallStatus
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import AuditRecord, Event, EventKind
from agentguard.domain.operations import (
    Admission,
    Append,
    Appended,
    ApprovalDemand,
    Begin,
    Describe,
    Edited,
    EndRun,
    Finish,
    Finished,
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
    Moved,
    OpenRun,
    Operation,
    Proceed,
    PutState,
    ReadAccount,
    ReadAudit,
    ReadBudgets,
    Replayed,
    Reserve,
    Reserved,
    ResolveCall,
    Restore,
    RunOpened,
    Settle,
    Turned,
    Unresolved,
    Vote,
    Waiting,
)
from agentguard.domain.runs import ApprovalFilter, RunRecord, StateEntry, Switch
from agentguard.domain.usage import NANO, Amounts, BudgetLine, BudgetWarning, Meter, Shortfall
from agentguard.errors import ApprovalError, StoreConflict
from agentguard.runs.lifecycle import RUN_ENDED, call_may, run_may
from agentguard.stores.rows import CallRow, RunRow, Transaction

_SETTLED: Final[Amounts] = (("settled", 1),)
"""Marks a hold, without accounts, as the memory of one that was settled: the second settlement changes nothing."""

_REMEMBER_NS: Final = 24 * 3600 * NANO


def perform(tx: Transaction, operation: Operation[Any]) -> Any:
    """Carry out one operation inside ``tx``.

    Raises:
        StoreConflict: As the operation's docstring says.
        ApprovalError: A vote does not count.
    """
    match operation:
        case Begin():
            return begin(tx, operation)
        case Finish():
            return finish(tx, operation)
        case Append():
            return append(tx, operation)
        case Reserve():
            return reserve(tx, operation)
        case Settle():
            return settle(tx, operation)
        case OpenRun():
            return open_run(tx, operation)
        case EndRun():
            return end_run(tx, operation)
        case Vote():
            return vote(tx, operation)
        case ResolveCall():
            return resolve_call(tx, operation)
        case PutState():
            return put_state(tx, operation)
        case Kill():
            return kill(tx, operation)
        case Restore():
            return restore(tx, operation)
        case _:
            return _read(tx, operation)


def _read(tx: Transaction, operation: Operation[Any]) -> Any:
    match operation:
        case GetRun(tenant, run_id):
            row = tx.find_run(run_id) if tenant is None else tx.run(tenant, run_id)
            return None if row is None else _value(tx, row)
        case ListRuns(wanted):
            return tuple(_value(tx, row) for row in tx.runs(wanted))
        case GetCall(tenant, key):
            call = tx.call(tenant, key)
            return None if call is None else call.record()
        case ListCalls(tenant, run_id):
            return tuple(row.record() for row in tx.calls(tenant, run_id))
        case GetApproval(approval_id, tenant):
            request = tx.approval(approval_id)
            if request is None or (tenant is not None and request.tenant != tenant):
                return None
            return routing.as_of(request, tx.now)
        case ListApprovals(wanted):
            # Status is applied after expiry, so a stored "pending" that ran out is not listed as pending.
            found = (routing.as_of(r, tx.now) for r in tx.approvals(wanted))
            kept = [
                r
                for r in found
                if (wanted.status is None or r.status == wanted.status)
                and (wanted.role is None or wanted.role in routing.eligible_roles(r, tx.now))
            ]
            return tuple(kept[: wanted.limit])
        case ReadBudgets(meters):
            return _budget_lines(tx, meters)
        case ReadAccount(account):
            return dict(tx.account(account).used)
        case ReadAudit(tenant, run_id, after, limit):
            return tuple(tx.records(tenant, run_id, after, limit))
        case GetState(tenant, run_id, key):
            return tx.state(tenant, _root(tx, tenant, run_id), key)
        case ListState(tenant, run_id):
            return tuple(tx.states(tenant, _root(tx, tenant, run_id)))
        case ListSwitches(tenant):
            return tuple(tx.switches(tenant))
        case Describe():
            return tx.describe()
        case _:
            raise TypeError(f"no store operation: {type(operation).__name__}")


# --- audit ---------------------------------------------------------------------------------------


_DEFERRABLE: frozenset[EventKind] = frozenset({"call.intent", "call.outcome"})
"""Kinds whose facts the flow makes of checked parts only, so that sealing them later cannot fail."""


def _record(tx: Transaction, run: RunRow, event: Event) -> AuditRecord | None:
    """Make ``event`` the next link of the run's chain; the caller puts the run row.

    ``None`` when the store seals it later.
    """
    if event.kind in _DEFERRABLE and tx.put_off(run, event):
        run.audit_seq += 1
        return None
    return _sealed(tx, run, event)


def _sealed(tx: Transaction, run: RunRow, event: Event) -> AuditRecord:
    """The same, sealed now."""
    tx.catch_up(run)
    context = run.opened.context
    record = seal(context.tenant, context.run_id, run.audit_seq + 1, run.audit_head, tx.now, event, tx.salt())
    run.audit_seq = record.seq
    run.audit_head = record.hash
    tx.append(record)
    return record


def _value(tx: Transaction, run: RunRow) -> RunRecord:
    tx.catch_up(run)
    return run.record()


def _note(tx: Transaction, run: RunRow, kind: EventKind, **facts: str | int | bool | None) -> AuditRecord:
    return _sealed(tx, run, Event(kind, facts))


def _known(records: list[AuditRecord | None]) -> tuple[AuditRecord, ...]:
    return tuple([record for record in records if record is not None]) if records else ()


def _need_run(tx: Transaction, tenant: str, run_id: str) -> RunRow:
    run = tx.run(tenant, run_id)
    if run is None:
        raise StoreConflict(f"There is no run {run_id} of tenant {tenant}.")
    return run


def append(tx: Transaction, op: Append) -> Appended:
    """Write one record to the chain of a run."""
    run = _need_run(tx, op.tenant, op.run_id)
    record = _sealed(tx, run, op.event)
    tx.put_run(run)
    return Appended((record,))


# --- calls ---------------------------------------------------------------------------------------


def _switched(tx: Transaction, op: Begin | OpenRun | Reserve, run: RunRow | None) -> Switch | None:
    if isinstance(op, OpenRun):
        context = op.record.context
        tenant, agent, user, tool = context.tenant, context.agent, context.user, None
        lineage = (context.run_id,) if run is None else (context.run_id, *run.lineage)
    else:
        tenant, agent, user = op.tenant, op.agent, op.user
        tool = op.tool if isinstance(op, Begin) else None
        lineage = () if run is None else run.lineage
    if not tx.switched():
        return None
    found = tx.switch("everything", "", "") or tx.switch("tenant", tenant, "")
    for scope, value in (("agent", agent), ("user", user), ("tool", tool)):
        if found is None and value:
            found = tx.switch(scope, tenant, value) or tx.switch(scope, "", value)
    for run_id in lineage:
        found = found or tx.switch("run", tenant, run_id)
    return found


def _killed(switch: Switch) -> Turned:
    what = f"{switch.scope} {switch.value or switch.tenant}".strip()
    return Turned(
        StopReason.KILLED,
        f"The kill switch of {what} is on since {switch.at} (by {switch.by}: {switch.reason}).",
        retryable=False,
    )


def _wake(tx: Transaction, run: RunRow) -> None:
    """Any activity ends a wait for a person."""
    if run.paused_at is not None:
        run.paused_ns += max(tx.now - run.paused_at, 0)
        run.paused_at = None
    if run.status == "waiting":
        run.status = "running"


def _rest(tx: Transaction, run: RunRow) -> None:
    """A run whose last active call waits for a person waits itself."""
    if run.active == 0 and run.pending > 0 and run.status not in RUN_ENDED and run.paused_at is None:
        run.paused_at = tx.now
        run.status = "waiting"


def _over(tx: Transaction, run: RunRow) -> Turned | None:
    """The run has ended, or one that it works for was stopped or has failed."""
    context = run.opened.context
    if run.status in RUN_ENDED:
        why = run.stop_reason.value if run.stop_reason else run.status
        return Turned(StopReason.RUN_ENDED, f"Run {context.run_id} has ended ({why}); open a new run.")
    for run_id in run.lineage[1:]:
        above = tx.run(context.tenant, run_id)
        if above is not None and above.status in ("failed", "stopped"):
            return Turned(StopReason.RUN_ENDED, f"Run {run_id}, which {context.run_id} works for, has {above.status}.")
    return None


def _deadline(tx: Transaction, run: RunRow) -> int | None:
    """When the run's wall or working time ends, whichever comes first, ns since the epoch."""
    opened = run.opened
    if opened.deadline_ns is None and opened.working_limit_ns is None:
        return None
    ends = []
    if opened.deadline_ns is not None:
        ends.append(opened.deadline_ns)
    if opened.working_limit_ns is not None:
        ends.append(opened.started_at + opened.working_limit_ns + _paused(tx, run))
    return min(ends) if ends else None


def _paused(tx: Transaction, run: RunRow) -> int:
    """How long the run has waited for people so far, in ns."""
    return run.paused_ns + (max(tx.now - run.paused_at, 0) if run.paused_at is not None else 0)


def _sooner(one: int | None, other: int | None) -> int | None:
    """The tighter of two limits, ``None`` being none."""
    return other if one is None else one if other is None else min(one, other)


def _out_of_time(tx: Transaction, run: RunRow) -> Turned | None:
    deadline = _deadline(tx, run)
    if deadline is None or tx.now < deadline:
        return None
    return Turned(StopReason.BUDGET_TIME, f"The time of run {run.opened.context.run_id} is used up.")


def _accounts(tx: Transaction, meters: tuple[Meter, ...]) -> list[ledger.Account]:
    now = tx.now
    return [tx.account(meter.account if meter.per is None else ledger.account_key(meter, now)) for meter in meters]


def _short(
    tx: Transaction, meters: tuple[Meter, ...], accounts: list[ledger.Account], amounts: Amounts
) -> Shortfall | None:
    """The first limit in the way; holds of dead processes are given back before the answer is no."""
    short = _first_short(meters, accounts, amounts)
    # Releasing changes these very accounts: a transaction hands out one object per row.
    if short is not None and release_lapsed(tx):
        short = _first_short(meters, accounts, amounts)
    return short


def _first_short(meters: tuple[Meter, ...], accounts: list[ledger.Account], amounts: Amounts) -> Shortfall | None:
    for meter, account in zip(meters, accounts, strict=True):
        if meter.limits:
            short = ledger.shortfall(meter, account, amounts)
            if short is not None:
                return short
    return None


def release_lapsed(tx: Transaction) -> int:
    """Give back the holds whose lease has ended; the number of them."""
    lapsed = tx.lapsed_holds()
    for hold in lapsed:
        for key in hold.accounts:
            account = tx.account(key)
            ledger.release(account, hold.amounts)
            tx.put_account(account)
        tx.drop_hold(hold.key)
    return len(lapsed)


def _hold_key(tenant: str, key: str) -> str:
    # The keys of two tenants may be equal; their holds must not be.
    return f"{len(tenant)}:{tenant}{key}"


def _hold(
    tx: Transaction,
    tenant: str,
    key: str,
    meters: tuple[Meter, ...],
    accounts: list[ledger.Account],
    amounts: Amounts,
    until: int,
) -> list[BudgetWarning]:
    warnings: list[BudgetWarning] = []
    for meter, account in zip(meters, accounts, strict=True):
        ledger.hold(account, amounts)
        if meter.warn_at is not None:
            warnings += ledger.crossings(meter, account, amounts)
        tx.put_account(account)
    tx.put_hold(ledger.Hold(_hold_key(tenant, key), tuple([account.key for account in accounts]), amounts, until))
    return warnings


def _unhold(tx: Transaction, tenant: str, key: str) -> ledger.Hold | None:
    hold = tx.hold(_hold_key(tenant, key))
    if hold is not None:
        for account_key in hold.accounts:
            account = tx.account(account_key)
            ledger.release(account, hold.amounts)
            tx.put_account(account)
        tx.drop_hold(hold.key)
    return hold


def _spend(
    tx: Transaction, tenant: str, key: str, meters: tuple[Meter, ...], amounts: Amounts
) -> tuple[list[BudgetWarning], list[Shortfall]]:
    """Settle the hold of ``key`` (if it is still there) with ``amounts``: into the accounts that held it, so
    that a call which began before midnight is charged to the day it began in."""
    hold = tx.hold(_hold_key(tenant, key))
    warnings: list[BudgetWarning] = []
    over: list[Shortfall] = []
    if hold is not None and hold.amounts == amounts and len(hold.accounts) == len(meters):
        # What was held was within the limits, and its thresholds were reported then.
        for account_key in hold.accounts:
            account = tx.account(account_key)
            ledger.settle(account, amounts)
            tx.put_account(account)
        tx.drop_hold(hold.key)
        return warnings, over
    keys = hold.accounts if hold is not None else tuple(ledger.account_key(m, tx.now) for m in meters)
    for index, account_key in enumerate(keys):
        account = tx.account(account_key)
        if hold is not None:
            ledger.release(account, hold.amounts)
        ledger.charge(account, amounts)
        if index < len(meters):
            meter = meters[index]
            if meter.limits:
                over += ledger.overruns(meter, account, amounts)
            if meter.warn_at is not None:
                warnings += ledger.crossings(meter, account, amounts)
        tx.put_account(account)
    if hold is not None:
        tx.drop_hold(hold.key)
    return warnings, over


def _warn(tx: Transaction, run: RunRow, warnings: list[BudgetWarning]) -> list[AuditRecord]:
    return [
        _note(tx, run, "budget.warning", budget=w.label, dimension=w.dimension, limit=str(w.limit), used=str(w.used))
        for w in warnings
    ]


def _move(row: CallRow | None, after: CallStatus) -> None:
    before = row.status if row is not None else None
    if not call_may(before, after):
        raise StoreConflict(f"A call cannot move from {before} to {after}.")


def begin(tx: Transaction, op: Begin) -> Admission:
    """Admit a decided call; see :class:`~agentguard.domain.operations.Begin`."""
    run = tx.run(op.tenant, op.run_id)
    if run is None:
        return Turned(StopReason.NO_ACTIVE_RUN, f"There is no run {op.run_id} of tenant {op.tenant}.")
    row = tx.call(op.tenant, op.key)
    if row is not None:
        known = _known_call(tx, op, run, row)
        if known is not None:
            return known
    elif op.max_repeats is not None and op.fingerprint:
        looping = _looping(op, run)
        if looping is not None:
            return looping
    over = _over(tx, run)
    if over is not None:
        return over
    switch = _switched(tx, op, run)
    if switch is not None:
        return _killed(switch)
    if op.run_version is not None and op.run_version != run.version:
        return Moved(run.labels, run.version)
    late = _out_of_time(tx, run)
    if late is not None:
        return late
    if op.concurrency is not None and tx.running(op.tenant, op.tool) >= op.concurrency:
        return Turned(
            StopReason.CONCURRENCY, f"{op.tool} already runs {op.concurrency} times, its limit.", retryable=True
        )
    # The hold of an earlier start that may be repeated must not stand in its own way.
    released = _unhold(tx, op.tenant, op.key) if row is not None and row.status in ("running", "ambiguous") else None
    accounts = _accounts(tx, op.meters)
    short = _short(tx, op.meters, accounts, op.amounts)
    if short is not None:
        if released is not None:
            _rehold(tx, released)
        return Turned(
            ledger.reason_for(short.dimension), ledger.describe(short), retryable=short.scope != "run", shortfall=short
        )
    records: list[AuditRecord | None] = []
    approval_id = None
    if op.approval is not None:
        try:
            gate = _approval(tx, op, op.approval, run, row, records)
        except Exception:
            if released is not None:
                _rehold(tx, released)
            raise
        if not isinstance(gate, str):
            return gate
        approval_id = gate
    elif row is not None and row.status == "pending" and row.approval_id is not None:
        _supersede(tx, run, row.approval_id, records)
    return _start(tx, op, run, row, accounts, approval_id, records)


def _rehold(tx: Transaction, hold: ledger.Hold) -> None:
    for key in hold.accounts:
        account = tx.account(key)
        ledger.hold(account, hold.amounts)
        tx.put_account(account)
    tx.put_hold(hold)


def _start(
    tx: Transaction,
    op: Begin,
    run: RunRow,
    row: CallRow | None,
    accounts: list[ledger.Account],
    approval_id: str | None,
    records: list[AuditRecord | None],
) -> Proceed:
    _move(row, "running")
    seq = 0
    if op.event is not None:
        event = op.event
        if approval_id is not None:
            event = replace(event, also=(*event.also, ("approval", approval_id)))
        records.append(_record(tx, run, event))
        seq = run.audit_seq
    _wake(tx, run)
    lease_until = tx.now + op.lease_ns
    warnings = _hold(tx, op.tenant, op.key, op.meters, accounts, op.amounts, lease_until)
    if row is not None:
        _vacate(tx, row, run)
    run.active += 1
    fence = 1 if row is None else row.fence + 1
    if row is None:
        _count(op, run)
        row = CallRow(
            op.tenant,
            op.run_id,
            op.key,
            op.call_id,
            op.tool,
            "running",
            op.fingerprint,
            fence,
            op.effect,
            lease_until,
            tx.now,
            None,
            None,
            approval_id,
        )
    else:
        row.status = "running"
        row.run_id = op.run_id
        row.call_id = op.call_id
        if op.edit_of is None:  # an edit does not change what the caller asks for when it calls again
            row.fingerprint = op.fingerprint or row.fingerprint
        row.fence = fence
        row.lease_until = lease_until
        row.started_at = tx.now
        row.ended_at = None
        row.outcome = None
        row.approval_id = approval_id
    tx.put_call(row)
    if warnings:
        records += _warn(tx, run, warnings)
    tx.put_run(run)
    return Proceed(fence, tx.now, _deadline(tx, run), approval_id, tuple(warnings), _known(records), seq)


def _vacate(tx: Transaction, row: CallRow, run: RunRow) -> None:
    """Take a call off the counters of the run it was started in: with an idempotency key that may be another."""
    owner = run if row.run_id == run.opened.context.run_id else tx.run(row.tenant, row.run_id)
    if owner is None:
        return
    if row.status == "running":
        owner.active = max(owner.active - 1, 0)
    elif row.status == "pending":
        owner.pending = max(owner.pending - 1, 0)
    if owner is not run:
        _rest(tx, owner)
        tx.put_run(owner)


def _known_call(tx: Transaction, op: Begin, run: RunRow, row: CallRow) -> Admission | None:
    """What an earlier call with the same key means for this one; ``None``: go on."""
    edited = op.edit_of is not None and op.edit_of == row.approval_id
    if row.tool != op.tool or (
        row.status != "refused"
        and not edited
        and op.fingerprint
        and row.fingerprint
        and row.fingerprint != op.fingerprint
    ):
        return Turned(
            StopReason.IDEMPOTENCY_CONFLICT,
            f"Call {op.call_id} was made before with another tool or other arguments; "
            "a key stands for one call only. Use a new call_id or idempotency key.",
        )
    if row.status in ("succeeded", "failed"):
        facts = {"call": op.call_id, "key": op.key, "status": row.status, "tool": op.tool}
        record = _sealed(tx, run, Event("call.replayed", facts))
        if row.status == "succeeded" and not set(op.labels) <= set(run.labels):
            _label(tx, run, op.labels)
        tx.put_run(run)
        return Replayed(row.record(), (record,))
    if row.status == "running" and tx.now < row.lease_until:
        return Turned(StopReason.IDEMPOTENCY_CONFLICT, f"Call {op.call_id} is running right now.", retryable=True)
    if op.rerun or row.status not in ("running", "ambiguous"):
        return None
    records: tuple[AuditRecord, ...] = ()
    if row.status == "running":
        row.status = "ambiguous"
        _unhold(tx, row.tenant, row.key)
        owner = run if row.run_id == op.run_id else tx.run(row.tenant, row.run_id)
        if owner is not None:
            owner.active = max(owner.active - 1, 0)
            facts = {
                "call": row.call_id,
                "key": row.key,
                "reason": "lease_lost",
                "status": "ambiguous",
                "tool": row.tool,
            }
            records = (_sealed(tx, owner, Event("call.outcome", facts)),)
            tx.put_run(owner)
        tx.put_call(row)
    return Unresolved(row.record(), records)


def _looping(op: Begin, run: RunRow) -> Turned | None:
    if op.max_repeats is None or run.last_call != op.fingerprint or run.repeats < op.max_repeats:
        return None
    return Turned(
        StopReason.LOOP_DETECTED,
        f"{op.tool} was called {run.repeats} times in a row with the same arguments; the limit is {op.max_repeats}.",
    )


def _count(op: Begin, run: RunRow) -> None:
    """Count a call that was admitted or suspended for the first time; one that is tried again counts once."""
    if op.max_repeats is not None and op.fingerprint:
        run.repeats = run.repeats + 1 if run.last_call == op.fingerprint else 1
        run.last_call = op.fingerprint


def _approval(
    tx: Transaction,
    op: Begin,
    demand: ApprovalDemand,
    run: RunRow,
    row: CallRow | None,
    records: list[AuditRecord | None],
) -> str | Admission:
    """The id of the approval that permits the call now (consumed by this), or what to answer instead."""
    request = None
    if row is not None and row.approval_id is not None and row.status in ("pending", "refused"):
        request = tx.approval(row.approval_id)
        if request is not None and (request.call_key != op.key or request.tenant != op.tenant):
            request = None  # a standing approval that was given for another call
        if request is not None:
            request = _expire(tx, run, request, records)
    if request is not None:
        match request.status:
            case "rejected" | "terminated":
                return _turned_by(tx, run, row, request, StopReason.APPROVAL_REJECTED, records)
            case "expired":
                return _turned_by(tx, run, row, request, StopReason.APPROVAL_EXPIRED, records)
            case "approved":
                if routing.matches(request, op, demand):
                    return _consume(tx, run, op, request, records)
                if request.edited is not None and op.edit_of is None and routing.concerns(request, op, demand):
                    tx.put_run(run)
                    return Edited(request)
                _supersede(tx, run, request.id, records)
            case "pending":
                if routing.matches(request, op, demand):
                    tx.put_run(run)
                    return Waiting(request, _known(records))
                _supersede(tx, run, request.id, records)
            case "consumed" | "superseded":
                pass
            case _:
                assert_never(request.status)
    for digest in routing.grant_keys(op, demand):
        grant = tx.grant(op.tenant, digest)
        if grant is not None and tx.now < grant.expires_at:
            return grant.id
    _move(row, "pending")
    opened = routing.open_request(op, demand, tx.now)
    tx.put_approval(opened)
    if row is None:
        row = CallRow(
            op.tenant, op.run_id, op.key, op.call_id, op.tool, "pending", op.fingerprint, 0, op.effect, 0, tx.now
        )
        _count(op, run)
    else:
        _vacate(tx, row, run)  # one that was lost and may be repeated needs a person's word again, too
        row.status = "pending"
        row.run_id = op.run_id
        row.fingerprint = op.fingerprint or row.fingerprint
    run.pending += 1
    row.approval_id = opened.id
    tx.put_call(row)
    facts = {
        "approval": opened.id,
        "call": op.call_id,
        "digest": opened.digest,
        "expires": str(opened.expires_at),
        "key": op.key,
        "policy": op.policy_digest,
        "rule": ", ".join(demand.rules)[:200],
        "tool": op.tool,
    }
    records.append(_sealed(tx, run, Event("approval.requested", facts, op.event.body if op.event else b"")))
    _rest(tx, run)
    tx.put_run(run)
    return Waiting(opened, _known(records), created=True)


def _expire(
    tx: Transaction, run: RunRow, request: ApprovalRequest, records: list[AuditRecord | None]
) -> ApprovalRequest:
    current = routing.as_of(request, tx.now)
    if current.status == "expired" and request.status != "expired":
        tx.put_approval(current)
        records.append(_note(tx, run, "approval.expired", approval=request.id, call=request.call_id, tool=request.tool))
    return current


def _turned_by(
    tx: Transaction,
    run: RunRow,
    row: CallRow | None,
    request: ApprovalRequest,
    reason: StopReason,
    records: list[AuditRecord | None],
) -> Turned:
    if row is not None and row.status == "pending":
        _move(row, "refused")
        _vacate(tx, row, run)
        row.status = "refused"
        tx.put_call(row)
        _wake(tx, run)
        _rest(tx, run)
    tx.put_run(run)
    if reason is StopReason.APPROVAL_EXPIRED:
        detail = f"Nobody decided approval {request.id} in time; it expired at {request.expires_at}."
    else:
        by = ", ".join(request.decided_by)
        detail = f"Approval {request.id} was rejected by {by}: {request.rejection or 'no reason given'}."
    return Turned(reason, detail, approval=request, records=_known(records))


def _consume(
    tx: Transaction, run: RunRow, op: Begin, request: ApprovalRequest, records: list[AuditRecord | None]
) -> str:
    tx.put_approval(replace(request, status="consumed"))
    records.append(_note(tx, run, "approval.consumed", approval=request.id, call=op.call_id, digest=request.digest))
    return request.id


def _supersede(tx: Transaction, run: RunRow, approval_id: str, records: list[AuditRecord | None]) -> None:
    request = tx.approval(approval_id)
    if request is not None and request.status in ("pending", "approved"):
        tx.put_approval(replace(request, status="superseded"))
        records.append(_note(tx, run, "approval.superseded", approval=approval_id, call=request.call_id))


def finish(tx: Transaction, op: Finish) -> Finished:
    """Settle an admitted call; see :class:`~agentguard.domain.operations.Finish`."""
    run = _need_run(tx, op.tenant, op.run_id)
    row = tx.call(op.tenant, op.key)
    if row is None or row.fence != op.fence or row.status not in ("running", "ambiguous"):
        return _finish_late(tx, op, run)
    was = row.status
    if was != op.status:
        _move(row, op.status)
    elif row.ended_at is not None:
        return Finished(True, run.labels, run.version)  # said before
    records: list[AuditRecord | None] = [_record(tx, run, event) for event in op.more]
    seq = 0
    if op.event is not None:
        records.append(_record(tx, run, op.event))
        seq = run.audit_seq
    warnings: list[BudgetWarning] = []
    over: list[Shortfall] = []
    if op.status == "refused":
        _unhold(tx, op.tenant, op.key)
        _give_back(tx, row)
    elif row.ended_at is None:  # else it was settled when it ended as ambiguous
        warnings, over = _spend(tx, op.tenant, op.key, run.opened.meters, op.amounts)
    row.status = op.status
    row.ended_at = tx.now
    row.outcome = op.outcome
    tx.put_call(row)
    if op.labels and not set(op.labels) <= set(run.labels):
        _label(tx, run, op.labels)
    if was == "running":
        run.active = max(run.active - 1, 0)
    if warnings:
        records += _warn(tx, run, warnings)
    if run.pending:
        _rest(tx, run)
    tx.put_run(run)
    return Finished(True, run.labels, run.version, tuple(warnings), _known(records), tuple(over), seq)


def _label(tx: Transaction, run: RunRow, labels: tuple[str, ...]) -> None:
    """What a run has read, its parents know too: their next decision must see it."""
    for run_id in run.lineage:
        row = run if run_id == run.opened.context.run_id else tx.run(run.opened.context.tenant, run_id)
        if row is not None and not set(labels) <= set(row.labels):
            row.labels = tuple(sorted({*row.labels, *labels}))
            row.version += 1
            if row is not run:
                tx.put_run(row)


def _give_back(tx: Transaction, row: CallRow) -> None:
    """An approval that was consumed for a body that never started may be used again."""
    if row.approval_id is None:
        return
    request = tx.approval(row.approval_id)
    if request is not None and request.status == "consumed" and request.call_key == row.key:
        tx.put_approval(replace(request, status="approved"))


def _finish_late(tx: Transaction, op: Finish, run: RunRow) -> Finished:
    """This worker no longer owns the call: record what it reports, change nothing else."""
    row = tx.call(op.tenant, op.key)
    if row is not None and (row.fence, row.status, row.outcome) == (op.fence, op.status, op.outcome):
        return Finished(True, run.labels, run.version)  # it asks again because it did not hear the answer
    facts: Mapping[str, str | int | bool | None] = {"fence": op.fence, "key": op.key, "status": op.status}
    record = _sealed(tx, run, Event("call.late", facts, op.event.body if op.event else b""))
    tx.put_run(run)
    return Finished(False, run.labels, run.version, (), (record,))


def resolve_call(tx: Transaction, op: ResolveCall) -> CallRecord:
    """A probe or a person says what became of a call."""
    row = tx.call(op.tenant, op.key)
    if row is None:
        raise StoreConflict("There is no such call.")
    lost = row.status == "running" and tx.now >= row.lease_until
    if row.status != "ambiguous" and not lost:
        raise StoreConflict(f"Call {row.call_id} is {row.status}, not ambiguous; there is nothing to resolve.")
    run = _need_run(tx, row.tenant, row.run_id)
    if lost:
        _unhold(tx, row.tenant, row.key)
        run.active = max(run.active - 1, 0)
        row.status = "ambiguous"
    _move(row, op.status)
    row.status = op.status
    row.outcome = op.outcome
    row.ended_at = tx.now
    row.fence += 1  # a worker that wakes up late must not overwrite what was decided here
    if op.status == "refused":
        row.approval_id = None
    tx.put_call(row)
    facts = {"by": op.by, "call": row.call_id, "key": row.key, "status": op.status, "tool": row.tool}
    _sealed(tx, run, Event("call.resolved", facts, op.reason.encode("utf-8", "replace")))
    tx.put_run(run)
    return row.record()


# --- budgets -------------------------------------------------------------------------------------


def reserve(tx: Transaction, op: Reserve) -> Reserved:
    """Hold (or, with ``enforce=False``, charge) amounts for something that is no tool call."""
    run = _need_run(tx, op.tenant, op.run_id)
    if op.enforce:
        over_already = _over(tx, run)
        if over_already is not None:
            return Reserved(None, over_already.reason, over_already.detail)
        switch = _switched(tx, op, run)
        if switch is not None:
            return Reserved(None, StopReason.KILLED, _killed(switch).detail)
        late = _out_of_time(tx, run)
        if late is not None:
            return Reserved(None, late.reason, late.detail)
        if tx.hold(_hold_key(op.tenant, op.key)) is not None:
            raise StoreConflict(f"{op.key} is reserved already.")
        accounts = _accounts(tx, op.meters)
        short = _short(tx, op.meters, accounts, op.amounts)
        if short is not None:
            return Reserved(short, ledger.reason_for(short.dimension), ledger.describe(short))
        _wake(tx, run)
        warnings = _hold(tx, op.tenant, op.key, op.meters, accounts, op.amounts, tx.now + op.lease_ns)
        over: list[Shortfall] = []
    else:
        _wake(tx, run)
        warnings, over = _spend(tx, op.tenant, op.key, op.meters, op.amounts)
        if run.pending:
            _rest(tx, run)
    records = [] if op.event is None else [_sealed(tx, run, op.event)]
    records += _warn(tx, run, warnings)
    tx.put_run(run)
    return Reserved(None, None, "", tuple(over), tuple(warnings), tuple(records))


def settle(tx: Transaction, op: Settle) -> Reserved:
    """Replace a hold by what was used; without a hold (lease lost) the use is recorded all the same."""
    run = _need_run(tx, op.tenant, op.run_id)
    hold = tx.hold(_hold_key(op.tenant, op.key))
    if hold is not None and hold.amounts == _SETTLED:
        return Reserved(None)
    warnings, over = _spend(tx, op.tenant, op.key, op.meters, op.amounts)
    tx.put_hold(ledger.Hold(_hold_key(op.tenant, op.key), (), _SETTLED, tx.now + _REMEMBER_NS))
    records = [] if op.event is None else [_sealed(tx, run, op.event)]
    records += _warn(tx, run, warnings)
    if run.pending:
        _rest(tx, run)
    tx.put_run(run)
    return Reserved(None, None, "", tuple(over), tuple(warnings), tuple(records))


def _budget_lines(tx: Transaction, meters: tuple[Meter, ...]) -> tuple[BudgetLine, ...]:
    return tuple(
        BudgetLine(
            meter.label,
            meter.scope,
            dimension,
            account.used.get(dimension, 0),
            account.held.get(dimension, 0),
            meter.limits.get(dimension),
            account.key,
        )
        for meter, account in zip(meters, _accounts(tx, meters), strict=True)
        for dimension in sorted({*meter.limits, *account.used, *account.held})
    )


# --- approvals -----------------------------------------------------------------------------------


def vote(tx: Transaction, op: Vote) -> ApprovalRequest:
    """One approver's answer; see :class:`~agentguard.domain.operations.Vote`."""
    request = tx.approval(op.id)
    if request is None or (op.tenant is not None and request.tenant != op.tenant):
        raise ApprovalError(f"There is no approval request {op.id}.", code="AG631")
    run = _need_run(tx, request.tenant, request.run_id)
    decided = routing.vote(request, op.verdict, tx.now)
    grant = routing.grants(decided)
    verdict = op.verdict
    facts: Mapping[str, str | int | bool | None] = {
        "approval": request.id,
        "by": verdict.by.name,
        "call": request.call_id,
        "digest": decided.digest,
        "edited": verdict.arguments is not None,
        "policy": request.policy_digest,
        "roles": ",".join(verdict.by.roles)[:200],
        "scope": verdict.scope,
        "status": decided.status,
        "tool": request.tool,
        "verdict": verdict.kind,
    }
    kind: EventKind = "approval.voted" if decided.status == "pending" else "approval.decided"
    # First the record: what cannot be recorded must not be decided.
    _sealed(tx, run, Event(kind, facts, (verdict.reason or "").encode("utf-8", "replace")))
    tx.put_approval(decided)
    if grant is not None:
        tx.put_grant(grant)
    if decided.status == "terminated" and run.status not in RUN_ENDED:
        _drop_requests(tx, run)
        _wake(tx, run)  # so that the wait for this very answer does not count as work
        run.status = "stopped"
        run.stop_reason = StopReason.APPROVAL_REJECTED
        run.ended_at = tx.now
        _note(tx, run, "run.stopped", by=verdict.by.name, reason=StopReason.APPROVAL_REJECTED.value)
    tx.put_run(run)
    return decided


# --- runs ----------------------------------------------------------------------------------------


def open_run(tx: Transaction, op: OpenRun) -> RunOpened:
    """Create a run on the store's clock."""
    asked = op.record
    context = asked.context
    if tx.run(context.tenant, context.run_id) is not None:
        raise StoreConflict(f"Run {context.run_id} of tenant {context.tenant} exists already; use resume.")
    parent = None
    if context.parent is not None:
        parent = tx.run(context.tenant, context.parent)
        if parent is None or parent.status in RUN_ENDED:
            return RunOpened(
                asked, (), Turned(StopReason.RUN_ENDED, f"The parent run {context.parent} is not running.")
            )
    switch = _switched(tx, op, parent)
    if switch is not None:
        return RunOpened(asked, (), _killed(switch))
    deadline = None if op.seconds_ns is None else tx.now + op.seconds_ns
    working = asked.working_limit_ns
    if parent is not None:
        deadline = _sooner(deadline, parent.opened.deadline_ns)
        limit = parent.opened.working_limit_ns
        if limit is not None:
            # What is left of the parent's working time, not its end on the clock: waiting for people is free.
            worked = tx.now - parent.opened.started_at - _paused(tx, parent)
            working = _sooner(working, max(limit - worked, 0))
    labels = tuple(sorted({*context.labels, *(parent.labels if parent else ())}))
    record: RunRecord = replace(asked, started_at=tx.now, deadline_ns=deadline, working_limit_ns=working, labels=labels)
    lineage = (context.run_id, *(parent.lineage if parent else ()))
    run = RunRow(record, lineage, "running", labels)
    records = [_sealed(tx, run, op.event)]
    tx.put_run(run)
    return RunOpened(run.record(), tuple(records))


def end_run(tx: Transaction, op: EndRun) -> RunOpened:
    """Move a run to an end state; the same end twice changes nothing."""
    run = _need_run(tx, op.tenant, op.run_id)
    if run.status in RUN_ENDED:
        if run.status == op.status and run.stop_reason is op.stop_reason and run.result == op.result:
            return RunOpened(_value(tx, run))
        raise StoreConflict(f"Run {op.run_id} has ended as {run.status}; it cannot become {op.status}.")
    if not run_may(run.status, op.status):
        raise StoreConflict(f"A run cannot move from {run.status} to {op.status}.")
    _drop_requests(tx, run)
    _wake(tx, run)
    run.status = op.status
    run.stop_reason = op.stop_reason
    run.result = op.result
    run.ended_at = tx.now
    records = [_sealed(tx, run, op.event)]
    tx.put_run(run)
    return RunOpened(run.record(), tuple(records))


def _drop_requests(tx: Transaction, run: RunRow) -> None:
    """Nobody must be asked for a decision that can no longer have an effect."""
    if not run.pending:
        return
    context = run.opened.context
    for request in tx.approvals(ApprovalFilter(context.tenant, context.run_id)):
        if request.status in ("pending", "approved"):
            tx.put_approval(replace(request, status="superseded"))
            _note(tx, run, "approval.superseded", approval=request.id, call=request.call_id)


# --- shared state --------------------------------------------------------------------------------


def _root(tx: Transaction, tenant: str, run_id: str) -> str:
    """The run at the top: its state is shared by all that work on the task."""
    run = tx.run(tenant, run_id)
    return run_id if run is None else run.lineage[-1]


def put_state(tx: Transaction, op: PutState) -> StateEntry:
    """Write one key if its version is the expected one."""
    writer = _need_run(tx, op.tenant, op.run_id)
    root = writer.lineage[-1]
    current = tx.state(op.tenant, root, op.key)
    version = current.version if current is not None else 0
    if version != op.expected:
        who = f" by {current.by}" if current is not None else ""
        raise StoreConflict(
            f"State {op.key!r} is at version {version}{who}, not {op.expected}; read it again and decide anew."
        )
    try:
        canonical.tagged(op.value)
    except canonical.NotCanonical as error:
        raise StoreConflict(f"State {op.key!r} cannot be kept: {error}. Use JSON values.") from error
    entry = StateEntry(op.key, own(op.value), version + 1, op.by, tx.now)
    tx.put_state(op.tenant, root, entry)
    _note(tx, writer, "state.written", by=op.by, key=op.key, owner=root, version=entry.version)
    tx.put_run(writer)
    return entry


# --- switches ------------------------------------------------------------------------------------


def kill(tx: Transaction, op: Kill) -> Switch:
    """Turn a kill switch on; turning it on twice keeps the first."""
    found = tx.switch(op.scope, op.tenant, op.value)
    if found is not None:
        return found
    switch = Switch(op.scope, op.tenant, op.value, op.reason, op.by, tx.now)
    tx.put_switch(switch)
    return switch


def restore(tx: Transaction, op: Restore) -> bool:
    """Turn a kill switch off."""
    if tx.switch(op.scope, op.tenant, op.value) is None:
        return False
    tx.drop_switch(op.scope, op.tenant, op.value)
    return True
