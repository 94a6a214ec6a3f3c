"""Every extension point on one page.

Each is a small Protocol; the ``Async`` twin has the same names and may be implemented instead. All of them
are called by the drivers and nobody else. Whatever they raise ends in a refusal, never in an ungoverned call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from agentguard.domain.approvals import ApprovalRequest, Verdict
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import Operation

T = TypeVar("T")


@runtime_checkable
class Store(Protocol):
    """Remembers: runs, calls, budgets, approvals, state, switches, audit.

    ``perform`` carries out one operation as one transaction and answers what the operation's docstring
    says. It raises ``StoreConflict`` or ``ApprovalError`` where an operation says so, and
    ``StoreUnavailable`` for everything else; the caller then refuses the call. ``aperform`` is the same
    for the event loop and must not block it.
    """

    def perform(self, operation: Operation[T]) -> T:
        """Carry out one operation."""
        ...

    async def aperform(self, operation: Operation[T]) -> T:
        """Carry out one operation without blocking the event loop."""
        ...

    def close(self) -> None:
        """Release everything. Further operations raise ``StoreUnavailable``. Safe to call twice."""
        ...


@runtime_checkable
class Clock(Protocol):
    """Tells the time. Tests replace it; nothing else in the library reads a clock for a decision."""

    def now_ns(self) -> int:
        """Wall-clock time in ns since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


@runtime_checkable
class Approver(Protocol):
    """Decides inline, while the call waits.

    Called once per suspension, outside every lock and transaction. ``None`` means "not yet": the call is
    suspended and the durable request waits for somebody else. An exception refuses the call and leaves the
    request pending.
    """

    def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Answer the request, or ``None``."""
        ...


@runtime_checkable
class AsyncApprover(Protocol):
    """The twin of :class:`Approver` for the event loop."""

    async def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Answer the request, or ``None``."""
        ...


@dataclass(frozen=True, slots=True)
class CredentialRequest:
    """Which secret is needed for which call: name, tool, tenant, environment, agent, user, run."""

    name: str
    tool: str
    tenant: str
    environment: str
    agent: str
    user: str | None
    run_id: str


@runtime_checkable
class CredentialProvider(Protocol):
    """Hands out secrets, one call at a time.

    ``lease`` is called after the call was allowed and admitted, once per name; raising refuses the call.
    ``release`` is called when the call has ended, whatever became of it; what it raises is logged.
    """

    def lease(self, request: CredentialRequest) -> str:
        """The secret for this call."""
        ...

    def release(self, request: CredentialRequest, secret: str) -> None:
        """Take the secret back."""
        ...


@runtime_checkable
class AsyncCredentialProvider(Protocol):
    """The twin of :class:`CredentialProvider` for the event loop."""

    async def lease(self, request: CredentialRequest) -> str:
        """The secret for this call."""
        ...

    async def release(self, request: CredentialRequest, secret: str) -> None:
        """Take the secret back."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Receives audit records after they are durable in the store.

    ``required`` sinks must have taken the intent record before the tool runs: raising, or not answering
    within the gateway's sink deadline, refuses the call. Records lost by other sinks are counted and
    reported as a gap.
    """

    required: bool

    def write(self, records: tuple[AuditRecord, ...]) -> None:
        """Take the records, in order, durably."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Is told what happened (``Event`` kinds as in the audit trail), for dashboards and alerts.

    Called after the fact; what it raises is logged and counted, it cannot change an outcome.
    """

    def on_event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Something happened."""
        ...


@runtime_checkable
class PriceList(Protocol):
    """Knows what model calls cost."""

    def price_nano(self, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Price in nano-dollars, or ``None`` when it is unknown (never 0 for unknown)."""
        ...


@runtime_checkable
class Redactor(Protocol):
    """Removes what must not be recorded, after known secrets have been removed.

    Called with JSON values (arguments, results). Raising refuses the call (before it ran) or withholds
    the body from the record (after it ran).
    """

    def redact(self, value: Any) -> Any:
        """The value without what must not be recorded."""
        ...
