"""One call and what became of it: the closed set of outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.constructing import quick
from agentguard.domain.decisions import Decision, StopReason

CallStatus: TypeAlias = Literal["refused", "pending", "running", "succeeded", "failed", "ambiguous"]


@quick
@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call as the store knows it.

    Attributes:
        tenant: Owner.
        run_id: Run it belongs to.
        key: Store key: run and ``call_id``, or the idempotency key; parts length-prefixed.
        call_id: Id within the run.
        tool: Name of the tool.
        status: Where the call stands.
        fingerprint: SHA-256 (hex) over tool and canonical arguments, or ``""``.
        fence: Grows with every start; a worker with an older fence can no longer finish the call.
        effect: Effect class of the tool.
        lease_until: ns since the epoch; a running call past it has lost its worker.
        started_at: ns since the epoch.
        ended_at: ns since the epoch, or ``None``.
        outcome: Stored outcome as JSON text, or ``None``.
        approval_id: Approval it waits for or used, if any.
    """

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


@quick
@dataclass(frozen=True, slots=True)
class Completed:
    """The tool ran and returned.

    Attributes:
        value: Its result, validated and redacted.
        replayed: ``True`` when this is the remembered outcome of an earlier call with the same key.
        decision: The policy decision, or ``None`` for a replay.
        call_id: Id of the call.
        attempts: How often the body was started.
        warnings: Budget thresholds crossed, deprecation notices, guidance of the policy.
    """

    value: Any
    replayed: bool = False
    decision: Decision | None = None
    call_id: str = ""
    attempts: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The tool did not run, and will not by itself.

    Attributes:
        reason: Why, as a stable word.
        decision: The policy decision, when it came that far.
        message: For the model: at most 500 characters, no value that the model or a third party wrote.
        retryable: Whether the same call may be allowed later.
        detail: For people: complete.
        call_id: Id of the call.
        code: Stable code of the refusal, for documentation.
    """

    reason: StopReason
    decision: Decision | None
    message: str
    retryable: bool = False
    detail: str = ""
    call_id: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Suspended:
    """A person has to decide first. Call again with the same ``call_id`` once that happened."""

    request: ApprovalRequest
    decision: Decision | None = None
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The tool was started and did not deliver.

    Attributes:
        error: The exception the tool raised, a timeout, or invalid output.
        reason: ``tool_error``, ``tool_timeout`` or ``invalid_output``.
        message: For the model, free of the tool's own words.
        replayed: ``True`` when this is the remembered outcome of an earlier call with the same key.
        decision: The policy decision, or ``None`` for a replay.
        call_id: Id of the call.
        attempts: How often the body was started.
    """

    error: BaseException
    reason: StopReason = StopReason.TOOL_ERROR
    message: str = ""
    replayed: bool = False
    decision: Decision | None = None
    call_id: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The tool may or may not have taken effect. It is not repeated until a probe or a person says so."""

    call: CallRecord
    message: str = ""
    decision: Decision | None = None
    call_id: str = ""


Outcome: TypeAlias = Completed | Refused | Suspended | Failed | Ambiguous
"""What became of a call; match on it, the set is closed."""
