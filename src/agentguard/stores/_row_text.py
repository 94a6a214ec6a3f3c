"""Rows as stores in SQL keep them: nested nouns as JSON text, everything that is searched or updated as columns.

What must stay true: what is read back equals what was written, tuples as tuples and integers as integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentguard.budget.ledger import Account, Hold
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import StopReason
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import Meter
from agentguard.stores.rows import CallRow, RunRow

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decode = json.loads


def json_text(value: Any) -> str:
    """A JSON value as text.

    Raises:
        ValueError: It has no JSON form (NaN, infinity, a circle).
        TypeError: It is no JSON value.
    """
    return _encode(value)


def json_value(text: str) -> Any:
    """The value of JSON text."""
    return _decode(text)


def opened_text(record: RunRecord) -> str:
    """What never changes about a run."""
    c, k = record.context, record.contract
    return _encode(
        {
            "context": {
                "run_id": c.run_id,
                "agent": c.agent,
                "tenant": c.tenant,
                "environment": c.environment,
                "user": c.user,
                "roles": c.roles,
                "session": c.session,
                "team": c.team,
                "parent": c.parent,
                "labels": c.labels,
                "scope": c.scope,
                "task": c.task,
            },
            "contract": {
                "task": k.task,
                "context": k.context,
                "constraints": k.constraints,
                "output_spec": k.output_spec,
            },
            "meters": [[m.account, m.scope, m.label, dict(m.limits), m.per, m.warn_at] for m in record.meters],
            "labels": record.labels,
            "started_at": record.started_at,
            "deadline_ns": record.deadline_ns,
            "working_limit_ns": record.working_limit_ns,
            "max_repeats": record.max_repeats,
        }
    )


def opened_value(text: str) -> RunRecord:
    """The inverse of :func:`opened_text`: the run as it was when it was opened."""
    value = _decode(text)
    context = value["context"]
    for name in ("roles", "labels"):
        context[name] = tuple(context[name])
    if context["scope"] is not None:
        context["scope"] = tuple(tuple(names) for names in context["scope"])
    return RunRecord(
        RunContext(**context),
        Contract(**value["contract"]),
        tuple(Meter(*meter) for meter in value["meters"]),
        "running",
        tuple(value["labels"]),
        0,
        value["started_at"],
        deadline_ns=value["deadline_ns"],
        working_limit_ns=value["working_limit_ns"],
        max_repeats=value.get("max_repeats"),
    )


RUN_COLUMNS = (
    "opened, lineage, status, labels, version, active, pending, paused_ns, paused_at, audit_seq, audit_head, "
    "last_call, repeats, ended_at, stop_reason, result"
)


def run_changes(row: RunRow) -> tuple[Any, ...]:
    """The columns that change, in the order of ``RUN_COLUMNS`` from ``status`` on."""
    return (
        row.status,
        _encode(row.labels) if row.labels else "[]",
        row.version,
        row.active,
        row.pending,
        row.paused_ns,
        row.paused_at,
        row.audit_seq,
        row.audit_head,
        row.last_call,
        row.repeats,
        row.ended_at,
        None if row.stop_reason is None else row.stop_reason.value,
        None if row.result is None else _encode(_plain(row.result)),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def run_row(opened: RunRecord, columns: tuple[Any, ...]) -> RunRow:
    """A run from its columns, ``opened`` read already."""
    version, active, pending, paused_ns, paused_at, seq, head, last_call, repeats, ended_at = columns[4:14]
    return RunRow(
        opened,
        tuple(_decode(columns[1])),
        columns[2],
        tuple(_decode(columns[3])),
        version,
        active,
        pending,
        paused_ns,
        paused_at,
        seq,
        head,
        last_call,
        repeats,
        ended_at,
        None if columns[14] is None else StopReason(columns[14]),
        None if columns[15] is None else _decode(columns[15]),
    )


def copy_run(row: RunRow) -> RunRow:
    """The same run as an object of its own."""
    return RunRow(
        row.opened,
        row.lineage,
        row.status,
        row.labels,
        row.version,
        row.active,
        row.pending,
        row.paused_ns,
        row.paused_at,
        row.audit_seq,
        row.audit_head,
        row.last_call,
        row.repeats,
        row.ended_at,
        row.stop_reason,
        row.result,
    )


CALL_COLUMNS = (
    "tenant, run_id, key, call_id, tool, status, fingerprint, fence, effect, lease_until, started_at, ended_at, "
    "outcome, approval_id"
)


def call_values(row: CallRow) -> tuple[Any, ...]:
    """The columns of a call, in the order of ``CALL_COLUMNS``."""
    return (
        row.tenant,
        row.run_id,
        row.key,
        row.call_id,
        row.tool,
        row.status,
        row.fingerprint,
        row.fence,
        row.effect,
        row.lease_until,
        row.started_at,
        row.ended_at,
        row.outcome,
        row.approval_id,
    )


def copy_call(row: CallRow) -> CallRow:
    """The same call as an object of its own."""
    return CallRow(*call_values(row))


def copy_account(account: Account) -> Account:
    """The same account as an object of its own."""
    return Account(account.key, account.used.copy(), account.held.copy(), account.warned.copy())


def account_values(account: Account) -> tuple[str, str, str, str]:
    """The columns of an account."""
    warned = _encode(sorted(account.warned)) if account.warned else "[]"
    return account.key, _encode(account.used), _encode(account.held) if account.held else "{}", warned


def account_value(key: str, columns: tuple[str, str, str]) -> Account:
    """An account from its columns."""
    return Account(key, _decode(columns[0]), _decode(columns[1]), set(_decode(columns[2])))


def hold_values(hold: Hold) -> tuple[str, str, str, int]:
    """The columns of a hold."""
    return hold.key, _encode(hold.accounts), _encode(hold.amounts), hold.lease_until


def hold_value(columns: tuple[str, str, str, int]) -> Hold:
    """A hold from its columns."""
    amounts = tuple((dimension, amount) for dimension, amount in _decode(columns[2]))
    return Hold(columns[0], tuple(_decode(columns[1])), amounts, columns[3])
