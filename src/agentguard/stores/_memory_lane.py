"""The memory store's short way through the common case: an allowed call that nothing stands against.

``admit`` and ``settle`` answer what ``stores.transitions`` would answer, or ``None`` for everything that is not
plainly the common case; then nothing has been changed and the long way is taken. What must stay true: the two ways
cannot be told apart (a test performs the same operations with and without the short one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.budget import ledger
from agentguard.domain.operations import Begin, Finish, Finished, Proceed
from agentguard.domain.usage import NANO, Meter
from agentguard.stores.rows import CallRow

if TYPE_CHECKING:
    from agentguard.stores.memory import Tables

_MINUTE_NS = 60 * NANO
"""Windows are calendar windows of whole minutes, so accounts stay the same until the next one."""

_WALLETS = 4096


class Wallets:
    """The accounts that a tuple of meters stands for now, so that they need not be looked up one by one."""

    def __init__(self) -> None:
        # The tuple is kept beside its accounts: while it is alive, nothing else can have its identity.
        self._known: dict[int, tuple[tuple[Meter, ...], int, tuple[ledger.Account, ...], tuple[str, ...]]] = {}

    def find(
        self, tables: Tables, meters: tuple[Meter, ...]
    ) -> tuple[tuple[ledger.Account, ...], tuple[str, ...]] | None:
        """Accounts and their keys, or ``None`` when a meter asks for more than counting."""
        known = self._known.get(id(meters))
        if known is not None and known[1] > tables.now:
            return known[2], known[3]
        if any(meter.warn_at is not None for meter in meters):
            return None
        accounts = tuple(tables.account(ledger.account_key(meter, tables.now)) for meter in meters)
        keys = tuple(account.key for account in accounts)
        if len(self._known) >= _WALLETS:
            self._known.clear()
        until = (tables.now // _MINUTE_NS + 1) * _MINUTE_NS
        self._known[id(meters)] = (meters, until, accounts, keys)
        return accounts, keys

    def forget(self) -> None:
        """Accounts were dropped; look them up anew."""
        self._known.clear()


def admit(tables: Tables, op: Begin) -> Proceed | None:
    """Admit a call, or ``None`` when it takes more than the common case."""
    tenant, key = op.tenant, op.key
    run = tables.runs_by_key.get((tenant, op.run_id))
    place = (tenant, key)
    if (
        run is None
        or run.status != "running"
        or run.paused_at is not None
        or place in tables.calls_by_key
        or tables.any_switch
        or op.approval is not None
        or op.concurrency is not None
        or op.event is None
        or tables.at_once
        or len(run.lineage) > 1
        or (op.run_version is not None and op.run_version != run.version)
        or (op.fingerprint and op.max_repeats is not None and run.last_call == op.fingerprint)
    ):
        return None
    opened = run.opened
    if opened.deadline_ns is not None or opened.working_limit_ns is not None:
        return None
    wallet = tables.wallets.find(tables, op.meters)
    if wallet is None:
        return None
    amounts = op.amounts
    accounts, account_keys = wallet
    for meter, account in zip(op.meters, accounts, strict=True):
        if meter.limits and ledger.shortfall(meter, account, amounts) is not None:
            return None
    now = tables.now
    until = now + op.lease_ns
    for account in accounts:
        ledger.hold(account, amounts)
    hold_key = f"{len(tenant)}:{tenant}{key}"
    tables.holds_by_key[hold_key] = ledger.Hold(hold_key, account_keys, amounts, until)
    run.active += 1
    if op.max_repeats is not None and op.fingerprint:
        run.last_call, run.repeats = op.fingerprint, 1
    tables.add_call(
        place,
        CallRow(
            tenant,
            op.run_id,
            key,
            op.call_id,
            op.tool,
            "running",
            op.fingerprint,
            1,
            op.effect,
            until,
            now,
            None,
            None,
            None,
        ),
    )
    tables.put_off(run, op.event)
    run.audit_seq += 1
    return Proceed(1, now, None, None, (), (), run.audit_seq)


def settle(tables: Tables, op: Finish) -> Finished | None:
    """Settle a call with what it held, or ``None`` when it takes more than the common case."""
    tenant, key = op.tenant, op.key
    run = tables.runs_by_key.get((tenant, op.run_id))
    row = tables.calls_by_key.get((tenant, key))
    if (
        run is None
        or row is None
        or row.fence != op.fence
        or row.status != "running"
        or op.status not in ("succeeded", "failed")
        or op.event is None
        or op.more
        or op.labels
        or run.pending
        or row.run_id != op.run_id
        or tables.at_once
    ):
        return None
    hold = tables.holds_by_key.get(f"{len(tenant)}:{tenant}{key}")
    if hold is None or hold.amounts != op.amounts:
        return None
    wallet = tables.wallets.find(tables, run.opened.meters)
    if wallet is None or wallet[1] != hold.accounts:
        return None
    for account in wallet[0]:
        ledger.settle(account, op.amounts)
    del tables.holds_by_key[hold.key]
    row.status = op.status
    row.ended_at = tables.now
    row.outcome = op.outcome
    tables.ended_call(row)
    run.active = max(run.active - 1, 0)
    tables.put_off(run, op.event)
    run.audit_seq += 1
    return Finished(True, run.labels, run.version, (), (), (), run.audit_seq)
