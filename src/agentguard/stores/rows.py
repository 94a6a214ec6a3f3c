"""What a store keeps, and the small interface through which the transitions reach it.

A store implements :class:`Transaction` and nothing of the meaning: ``stores.transitions`` reads and writes
rows through it, inside one real transaction of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agentguard.budget.ledger import Account, Hold
from agentguard.domain.approvals import ApprovalRequest, Grant
from agentguard.domain.calls import CallRecord, CallStatus
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.runs import ApprovalFilter, RunFilter, RunRecord, RunStatus, StateEntry, Switch


@dataclass(slots=True)
class RunRow:
    """A run while it lives: the record it was opened with, and what has changed since.

    Attributes:
        opened: The record as it was when the run was opened.
        lineage: Ids of the run and its ancestors, itself first; a kill switch on any of them stops it.
        status: Where the run stands.
        labels: Data labels, sorted.
        version: Grows with ``labels``.
        active: Calls that are running now.
        pending: Calls that wait for a person.
        paused_ns: Time spent waiting for people.
        paused_at: Since when it has been waiting, or ``None``.
        audit_seq: Records in the chain.
        audit_head: Hash of the last record.
        last_call: Fingerprint of the latest call.
        repeats: How often it came in a row.
        ended_at: ns, or ``None``.
        stop_reason: Why it ended.
        result: What came of it.
    """

    opened: RunRecord
    lineage: tuple[str, ...]
    status: RunStatus
    labels: tuple[str, ...]
    version: int = 0
    active: int = 0
    pending: int = 0
    paused_ns: int = 0
    paused_at: int | None = None
    audit_seq: int = 0
    audit_head: str = ""
    last_call: str = ""
    repeats: int = 0
    ended_at: int | None = None
    stop_reason: StopReason | None = None
    result: Mapping[str, Any] | None = None

    def record(self) -> RunRecord:
        """The run as a value."""
        return replace(
            self.opened,
            status=self.status,
            labels=self.labels,
            version=self.version,
            ended_at=self.ended_at,
            paused_ns=self.paused_ns,
            paused_at=self.paused_at,
            stop_reason=self.stop_reason,
            result=self.result,
            audit_seq=self.audit_seq,
            audit_head=self.audit_head,
        )


@dataclass(slots=True)
class CallRow:
    """A call while it lives; the fields are those of :class:`~agentguard.domain.calls.CallRecord`."""

    tenant: str
    run_id: str
    key: str
    call_id: str
    tool: str
    status: CallStatus
    fingerprint: str
    fence: int
    effect: str
    lease_until: int
    started_at: int
    ended_at: int | None = None
    outcome: str | None = None
    approval_id: str | None = None

    def record(self) -> CallRecord:
        """The call as a value."""
        return CallRecord(
            self.tenant,
            self.run_id,
            self.key,
            self.call_id,
            self.tool,
            self.status,
            self.fingerprint,
            self.fence,
            self.effect,
            self.lease_until,
            self.started_at,
            self.ended_at,
            self.outcome,
            self.approval_id,
        )


class Transaction(Protocol):
    """One transaction of a store.

    Getters return the store's current row or ``None``, and within one operation the same object for the same
    row; a row that was changed must be given to the matching ``put_...``. Everything becomes visible together or
    not at all."""

    now: int
    """The store's time at the start of the transaction, ns since the epoch."""

    def salt(self) -> str:
        """Fresh random hex (32 digits) for the digest of one audit body."""
        ...

    def run(self, tenant: str, run_id: str) -> RunRow | None:
        """One run."""
        ...

    def find_run(self, run_id: str) -> RunRow | None:
        """One run of any tenant (operators only); ``None`` when the id is unknown or not unique."""
        ...

    def runs(self, wanted: RunFilter) -> list[RunRow]:
        """Runs that match, newest first."""
        ...

    def put_run(self, row: RunRow) -> None:
        """Insert or update."""
        ...

    def call(self, tenant: str, key: str) -> CallRow | None:
        """One call."""
        ...

    def calls(self, tenant: str, run_id: str) -> list[CallRow]:
        """The calls of a run, oldest first."""
        ...

    def put_call(self, row: CallRow) -> None:
        """Insert or update."""
        ...

    def running(self, tenant: str, tool: str) -> int:
        """Calls of a tool that are running and whose lease has not ended."""
        ...

    def account(self, key: str) -> Account:
        """One account; a new one is empty."""
        ...

    def put_account(self, account: Account) -> None:
        """Insert or update."""
        ...

    def hold(self, key: str) -> Hold | None:
        """The hold of a call."""
        ...

    def put_hold(self, hold: Hold) -> None:
        """Insert or replace."""
        ...

    def drop_hold(self, key: str) -> None:
        """Remove; nothing happens when there is none."""
        ...

    def lapsed_holds(self) -> list[Hold]:
        """Holds whose lease has ended."""
        ...

    def approval(self, approval_id: str) -> ApprovalRequest | None:
        """One request."""
        ...

    def approvals(self, wanted: ApprovalFilter) -> list[ApprovalRequest]:
        """Requests that match tenant, run and tool, oldest first, as they were put.

        ``limit`` and ``role`` are for the caller to apply, and ``status`` too, which changes with time; a store
        may leave out requests that cannot come to have that status: ``pending`` ones have it already, ``expired``
        ones may still be ``pending`` or ``approved``, every other status stays."""
        ...

    def put_approval(self, request: ApprovalRequest) -> None:
        """Insert or update."""
        ...

    def grant(self, tenant: str, digest: str) -> Grant | None:
        """A standing approval."""
        ...

    def put_grant(self, grant: Grant) -> None:
        """Insert or replace."""
        ...

    def switched(self) -> bool:
        """``False`` when no kill switch at all is on, which saves looking for each."""
        ...

    def switch(self, scope: str, tenant: str, value: str) -> Switch | None:
        """One kill switch, if it is on."""
        ...

    def switches(self, tenant: str | None) -> list[Switch]:
        """The kill switches that are on, oldest first; ``None`` means of every tenant."""
        ...

    def put_switch(self, switch: Switch) -> None:
        """Turn on."""
        ...

    def drop_switch(self, scope: str, tenant: str, value: str) -> None:
        """Turn off."""
        ...

    def append(self, record: AuditRecord) -> None:
        """Add one record to the audit trail."""
        ...

    def put_off(self, run: RunRow, event: Event) -> bool:
        """Keep an event in its place of the run's chain and seal it when somebody looks, which a store that does
        not outlive its process may do. ``False``: it must be sealed now."""
        ...

    def catch_up(self, run: RunRow) -> None:
        """Seal what was put off, so that the head of the run's chain is that of its last event."""
        ...

    def records(self, tenant: str, run_id: str, after: int, limit: int) -> list[AuditRecord]:
        """Audit records of a run with ``seq > after``, in order."""
        ...

    def state(self, tenant: str, run_id: str, key: str) -> StateEntry | None:
        """One key of a run's shared state."""
        ...

    def states(self, tenant: str, run_id: str) -> list[StateEntry]:
        """A run's shared state, sorted by key."""
        ...

    def put_state(self, tenant: str, run_id: str, entry: StateEntry) -> None:
        """Insert or update."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Facts about the store."""
        ...
