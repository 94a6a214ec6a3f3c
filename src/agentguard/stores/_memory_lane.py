"""The memory store's short way through the common case: an allowed call that nothing stands against.

``admit`` and ``settle`` answer what ``stores.transitions`` would answer, or ``None`` for everything that is not
plainly the common case; then nothing has been changed and the long way is taken. What must stay true: the two ways
cannot be told apart (a test performs the same operations with and without the short one).
"""

from __future__ import annotations

from agentguard.domain.constructing import maker
from agentguard.domain.operations import Begin, Finish, Finished, Proceed
from agentguard.stores._memory_rows import Tables
from agentguard.stores.rows import CallRow

_proceed, _finished = maker(Proceed), maker(Finished)


def admit(tables: Tables, op: Begin) -> Proceed | None:
    """Admit a call, or ``None`` when it takes more than the common case."""
    desk = tables.desks.get((op.tenant, op.run_id))
    if desk is None or not desk.plain or tables.at_once:
        return None
    run, key, event, amounts = desk.run, op.key, op.event, op.amounts
    if (
        event is None
        or run.status != "running"
        or run.paused_at is not None
        or key in desk.calls
        or tables.any_switch
        or op.approval is not None
        or op.concurrency is not None
        or (op.run_version is not None and op.run_version != run.version)
    ):
        return None
    fingerprint = op.fingerprint
    counted = fingerprint and op.max_repeats is not None
    if counted and run.last_call == fingerprint:
        return None
    now = tables.now
    till = desk.tills.get(id(amounts))
    if till is None or till.meters is not op.meters or now >= till.until:
        till = tables.till(desk, op.meters, amounts)
        if till is None:
            return None
    if (tables.charged is not till or not till.room) and not tables.charge(till):
        return None
    till.room -= 1
    till.unwritten += 1
    if counted:
        run.last_call, run.repeats = fingerprint, 1
    run.active += 1
    run.audit_seq = seq = run.audit_seq + 1
    row = CallRow(
        op.tenant, op.run_id, key, op.call_id, op.tool, "running", fingerprint, 1, op.effect, now + op.lease_ns, now
    )
    desk.calls[key] = row
    desk.numbers[key] = tables.number = tables.number + 1
    desk.going[key] = (row, till)
    desk.unsealed += (now, event)
    return _proceed(1, now, None, None, (), (), seq)


def settle(tables: Tables, op: Finish) -> Finished | None:
    """Settle a call with what it held, or ``None`` when it takes more than the common case."""
    desk = tables.desks.get((op.tenant, op.run_id))
    if desk is None:
        return None
    key = op.key
    going = desk.going.get(key)
    if going is None:
        return None
    row, till = going
    run, event, status = desk.run, op.event, op.status
    if (
        event is None
        or row.fence != op.fence
        or status not in ("succeeded", "failed")
        or op.more
        or op.labels
        or run.pending
        or op.amounts != till.amounts
        or (till.meters is not run.opened.meters and len(till.meters) != len(run.opened.meters))
    ):
        return None
    del desk.going[key]
    if not till.owed:
        tables.owing.append(till)
    till.owed += 1
    row.status = status
    row.ended_at = tables.now
    row.outcome = op.outcome
    if run.active:
        run.active -= 1
    run.audit_seq = seq = run.audit_seq + 1
    desk.unsealed += (tables.now, event)
    return _finished(True, run.labels, run.version, (), (), (), seq)
