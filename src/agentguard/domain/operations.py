"""What the flow may ask of a store: one frozen request per transition, each one transaction.

``answer = yield from Begin(...)`` is typed: an :class:`Effect` yields itself to the driver and returns what
the driver sends back. Stores implement ``perform(operation)``; the meaning of every operation is written
once, in ``agentguard.stores.transitions``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, cast

from typing_extensions import TypeVar

from agentguard.domain.approvals import ApprovalRequest, Verdict
from agentguard.domain.calls import CallRecord
from agentguard.domain.constructing import quick
from agentguard.domain.decisions import ApprovalTerms, StopReason
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.runs import ApprovalFilter, RunFilter, RunRecord, StateEntry, Switch
from agentguard.domain.usage import Amounts, BudgetLine, BudgetWarning, Meter, Shortfall

T_co = TypeVar("T_co", covariant=True)


class Effect(Generic[T_co]):
    """A request to the world; ``T_co`` is the type of the answer."""

    __slots__ = ()

    def __iter__(self) -> Generator[Effect[Any], Any, T_co]:
        """Yield the request to the driver and return its answer."""
        return cast("T_co", (yield self))


class Operation(Effect[T_co]):
    """An effect that a store performs as one transaction."""

    __slots__ = ()


# --- calls ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApprovalDemand:
    """The request to open when no verdict is there yet, and what must match when one is.

    Attributes:
        terms: What the approval must satisfy.
        arguments: Effective arguments that will run.
        proposed: What the model asked for.
        canonical: Type-tagged canonical form of the arguments without the cosmetic ones; see
            ``agentguard.approval.binding``.
        tool_digest: Digest of the definition.
        risk: Risk tier.
        effect: Effect class.
        rules: Rules that demand approval.
        reasons: Why, for people.
        id: Id for a new request.
        nonce: Random, for a new request.
    """

    terms: ApprovalTerms
    arguments: Mapping[str, Any]
    proposed: Mapping[str, Any]
    canonical: bytes
    tool_digest: str
    risk: str
    effect: str
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    id: str
    nonce: str


@quick
@dataclass(frozen=True, slots=True)
class Begin(Operation["Admission"]):
    """Admit a decided call: kill switches, run status, earlier outcome, approval, budgets, intent record.

    Attributes:
        tenant: Owner.
        run_id: Run that calls.
        agent: Acting agent.
        user: Person it acts for.
        environment: Where.
        call_id: Id in the run.
        key: Store key of the call.
        tool: Name.
        effect: Effect class.
        fingerprint: SHA-256 (hex) over tool and arguments, or ``""`` when nothing can collide.
        policy_digest: Policy that allowed it.
        run_version: Version of the labels that the decision relied on, or ``None``.
        meters: Accounts to charge.
        amounts: What to reserve.
        lease_ns: How long the call may be silent before it counts as lost.
        concurrency: Calls of the tool that may run at once, or ``None``.
        approval: Set when the verdict asks for one.
        max_repeats: Identical consecutive calls allowed, or ``None``.
        event: The intent record, or ``None`` when the tool is not audited.
        rerun: The call may start again although an earlier start is unresolved (pure, read, idempotent).
        edit_of: Approval whose edited arguments these are, or ``None``.
        labels: Data labels that the run gains when the answer is :class:`Replayed`: it sees the output then,
            which another run may have produced.
    """

    tenant: str
    run_id: str
    agent: str
    user: str | None
    environment: str
    call_id: str
    key: str
    tool: str
    effect: str
    fingerprint: str
    policy_digest: str
    run_version: int | None
    meters: tuple[Meter, ...]
    amounts: Amounts
    lease_ns: int
    concurrency: int | None = None
    approval: ApprovalDemand | None = None
    max_repeats: int | None = None
    event: Event | None = None
    rerun: bool = False
    edit_of: str | None = None
    labels: tuple[str, ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Proceed:
    """The call is admitted: intent and hold are durable.

    Attributes:
        fence: Must be given back with :class:`Finish`.
        now: Store time, ns since the epoch.
        deadline_ns: End of the run's wall or working time, or ``None``.
        approval_id: Approval consumed, or ``None``.
        warnings: Thresholds crossed by this reservation.
        records: Audit records written, for the sinks.
        seq: Sequence number of the intent record, 0 when not audited.
    """

    fence: int
    now: int
    deadline_ns: int | None = None
    approval_id: str | None = None
    warnings: tuple[BudgetWarning, ...] = ()
    records: tuple[AuditRecord, ...] = ()
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Replayed:
    """An earlier call with the same key has ended; here is its outcome."""

    call: CallRecord
    records: tuple[AuditRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Turned:
    """The store turned the call away.

    Attributes:
        reason: Why.
        detail: For people.
        retryable: Whether trying later can help.
        shortfall: The limit that was in the way, for budget reasons.
        approval: The approval that was rejected or expired, for approval reasons.
        records: Audit records written.
    """

    reason: StopReason
    detail: str
    retryable: bool = False
    shortfall: Shortfall | None = None
    approval: ApprovalRequest | None = None
    records: tuple[AuditRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person has to decide; the request is durable."""

    request: ApprovalRequest
    records: tuple[AuditRecord, ...] = ()
    created: bool = False


@dataclass(frozen=True, slots=True)
class Edited:
    """A person approved other arguments; validate, decide and begin again with them."""

    request: ApprovalRequest


@dataclass(frozen=True, slots=True)
class Moved:
    """The run's labels changed since the decision; decide again with these."""

    labels: tuple[str, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An earlier start of the same call never reported back."""

    call: CallRecord
    records: tuple[AuditRecord, ...] = ()


Admission: TypeAlias = Proceed | Replayed | Turned | Waiting | Edited | Moved | Unresolved


@quick
@dataclass(frozen=True, slots=True)
class Finish(Operation["Finished"]):
    """Settle an admitted call: release or settle holds, remember the outcome, write the outcome record.

    Attributes:
        status: ``succeeded``, ``failed`` or ``ambiguous``; ``refused`` when the body never started (all
            holds are released and the key is free again).
        amounts: What was used; ``()`` releases everything.
        outcome: Outcome as JSON text for replays, or ``None``.
        labels: Data labels the run gains.
        event: The outcome record, or ``None`` when the tool is not audited.
        more: Further records (retries, fallbacks) that precede the outcome record.
    """

    tenant: str
    run_id: str
    key: str
    fence: int
    status: Literal["succeeded", "failed", "ambiguous", "refused"]
    amounts: Amounts
    outcome: str | None = None
    labels: tuple[str, ...] = ()
    event: Event | None = None
    more: tuple[Event, ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Finished:
    """The call is settled.

    Attributes:
        accepted: ``False`` when a newer start owns the call (this worker was fenced).
        labels: The run's labels now.
        version: Their version.
        warnings: Thresholds crossed by what was used.
        records: Audit records written.
        over: Limits exceeded by actual use, if any.
    """

    accepted: bool
    labels: tuple[str, ...]
    version: int
    warnings: tuple[BudgetWarning, ...] = ()
    records: tuple[AuditRecord, ...] = ()
    over: tuple[Shortfall, ...] = ()
    seq: int = 0


@dataclass(frozen=True, slots=True)
class GetCall(Operation[CallRecord | None]):
    """Read one call by its key."""

    tenant: str
    key: str


@dataclass(frozen=True, slots=True)
class ListCalls(Operation[tuple[CallRecord, ...]]):
    """The calls of a run, oldest first."""

    tenant: str
    run_id: str


@dataclass(frozen=True, slots=True)
class ResolveCall(Operation[CallRecord]):
    """Say what became of an ambiguous call: ``succeeded`` with an outcome, ``failed``, or ``refused``
    (it never happened, and the key is free again). Raises ``StoreConflict`` when the call is not ambiguous."""

    tenant: str
    key: str
    status: Literal["succeeded", "failed", "refused"]
    outcome: str | None
    by: str
    reason: str


# --- budgets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserve(Operation["Reserved"]):
    """Hold amounts for something that is no tool call (a model call). ``key`` identifies the hold.

    ``now_ns`` is never sent: the store uses its own clock. With ``enforce=False`` the amounts are
    charged at once whatever the limits say (they were used already) and ``over`` names what they crossed."""

    tenant: str
    run_id: str
    key: str
    meters: tuple[Meter, ...]
    amounts: Amounts
    lease_ns: int
    agent: str = ""
    user: str | None = None
    event: Event | None = None
    enforce: bool = True


@dataclass(frozen=True, slots=True)
class Reserved:
    """``shortfall`` is ``None`` when the amounts are held (or charged)."""

    shortfall: Shortfall | None
    reason: StopReason | None = None
    detail: str = ""
    over: tuple[Shortfall, ...] = ()
    warnings: tuple[BudgetWarning, ...] = ()
    records: tuple[AuditRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Settle(Operation["Reserved"]):
    """Replace a hold by what was used; the second settlement of a key changes nothing."""

    tenant: str
    run_id: str
    key: str
    meters: tuple[Meter, ...]
    amounts: Amounts
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class ReadBudgets(Operation[tuple[BudgetLine, ...]]):
    """Usage of the given meters; limits come from the meters."""

    meters: tuple[Meter, ...]


@dataclass(frozen=True, slots=True)
class ReadAccount(Operation[Mapping[str, int]]):
    """Settled amounts per dimension of one lifetime account."""

    account: str


# --- approvals -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetApproval(Operation[ApprovalRequest | None]):
    """Read one request; expiry is applied as of store time. ``tenant=None`` reads across tenants (operators)."""

    id: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class ListApprovals(Operation[tuple[ApprovalRequest, ...]]):
    """Requests that match, oldest first."""

    filter: ApprovalFilter


@dataclass(frozen=True, slots=True)
class Vote(Operation[ApprovalRequest]):
    """One approver's answer. Raises ``ApprovalError`` when it does not count: unknown, decided, expired,
    wrong role, requester, same approver twice, edit not permitted."""

    id: str
    verdict: Verdict
    tenant: str | None = None


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenRun(Operation["RunOpened"]):
    """Create a run. Raises ``StoreConflict`` when the id is taken. ``seconds`` and ``working_seconds``
    (ns) become deadlines on the store's clock."""

    record: RunRecord
    seconds_ns: int | None
    event: Event


@dataclass(frozen=True, slots=True)
class RunOpened:
    """The run is durable, or (``refused``) a kill switch or an ended parent is in the way."""

    record: RunRecord
    records: tuple[AuditRecord, ...] = ()
    refused: Turned | None = None


@dataclass(frozen=True, slots=True)
class GetRun(Operation[RunRecord | None]):
    """Read one run."""

    tenant: str | None
    run_id: str


@dataclass(frozen=True, slots=True)
class ListRuns(Operation[tuple[RunRecord, ...]]):
    """Runs that match, newest first."""

    filter: RunFilter


@dataclass(frozen=True, slots=True)
class EndRun(Operation["RunOpened"]):
    """Move a run to an end state. Raises ``StoreConflict`` when it has ended otherwise; the same end
    twice changes nothing."""

    tenant: str
    run_id: str
    status: Literal["completed", "failed", "stopped"]
    stop_reason: StopReason
    result: Mapping[str, Any]
    event: Event


# --- shared state --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetState(Operation[StateEntry | None]):
    """Read one key of the state shared by everything below the same root run."""

    tenant: str
    run_id: str
    key: str


@dataclass(frozen=True, slots=True)
class ListState(Operation[tuple[StateEntry, ...]]):
    """The whole state that a run shares, sorted by key."""

    tenant: str
    run_id: str


@dataclass(frozen=True, slots=True)
class PutState(Operation[StateEntry]):
    """Write one key if its version is ``expected`` (0: it must not exist). Raises ``StoreConflict``.

    The change goes into the audit chain of the run that writes, ``run_id``."""

    tenant: str
    run_id: str
    key: str
    value: Any
    expected: int
    by: str


# --- audit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append(Operation["Appended"]):
    """Write one record to the chain of a run."""

    tenant: str
    run_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class Appended:
    """What was written."""

    records: tuple[AuditRecord, ...]


@dataclass(frozen=True, slots=True)
class ReadAudit(Operation[tuple[AuditRecord, ...]]):
    """Records of one run with ``seq > after``, in order, at most ``limit``."""

    tenant: str
    run_id: str
    after: int = 0
    limit: int = 1000


# --- switches ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kill(Operation[Switch]):
    """Turn a kill switch on; turning it on twice keeps the first."""

    scope: str
    tenant: str
    value: str
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class Restore(Operation[bool]):
    """Turn a kill switch off; ``False`` when it was not on."""

    scope: str
    tenant: str
    value: str
    by: str


@dataclass(frozen=True, slots=True)
class ListSwitches(Operation[tuple[Switch, ...]]):
    """The switches that are on; ``tenant=None`` lists all."""

    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Describe(Operation[Mapping[str, Any]]):
    """Facts about the store itself for ``agentguard doctor``: kind, location, schema version, settings."""

    extra: Mapping[str, Any] = field(default_factory=dict)
