"""An outcome at the door: its value, or the exception that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard.domain.calls import Ambiguous, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.decisions import StopReason
from agentguard.errors import (
    AmbiguousCall,
    ApprovalExpired,
    ApprovalPending,
    ApprovalRejected,
    BudgetExceeded,
    CallFailed,
    CallRefused,
    CircuitOpen,
    InvalidArguments,
    InvalidOutput,
    NoActiveRun,
    PolicyDenied,
    RetriesExhausted,
    RunKilled,
    ToolRaised,
    ToolTimedOut,
    UnknownTool,
)

_REFUSALS: Final[Mapping[StopReason, type[CallRefused]]] = {
    StopReason.UNKNOWN_TOOL: UnknownTool,
    StopReason.INVALID_ARGUMENTS: InvalidArguments,
    StopReason.POLICY_DENIED: PolicyDenied,
    StopReason.UNENFORCEABLE: PolicyDenied,
    StopReason.BUDGET_STEPS: BudgetExceeded,
    StopReason.BUDGET_TOOL_CALLS: BudgetExceeded,
    StopReason.BUDGET_TOKENS: BudgetExceeded,
    StopReason.BUDGET_COST: BudgetExceeded,
    StopReason.BUDGET_TIME: BudgetExceeded,
    StopReason.BUDGET_COUNTER: BudgetExceeded,
    StopReason.LOOP_DETECTED: BudgetExceeded,
    StopReason.APPROVAL_REJECTED: ApprovalRejected,
    StopReason.APPROVAL_EXPIRED: ApprovalExpired,
    StopReason.CIRCUIT_OPEN: CircuitOpen,
    StopReason.KILLED: RunKilled,
    StopReason.RUN_ENDED: RunKilled,
    StopReason.NO_ACTIVE_RUN: NoActiveRun,
}


def refusal(outcome: Refused) -> CallRefused:
    """The exception of a refusal."""
    return _REFUSALS.get(outcome.reason, CallRefused)(outcome)


def value_of(outcome: Outcome) -> Any:
    """The value of a completed call.

    Raises:
        CallRefused: The tool did not run (a subclass says why).
        ApprovalPending: A person has to decide first.
        CallFailed: The tool was started and did not deliver (a subclass says how).
    """
    match outcome:
        case Completed():
            return outcome.value
        case Refused():
            raise refusal(outcome)
        case Suspended():
            raise ApprovalPending(outcome)
        case Ambiguous():
            raise AmbiguousCall(outcome)
        case Failed():
            raise _failure(outcome) from outcome.error


def _failure(outcome: Failed) -> CallFailed:
    match outcome.reason:
        case StopReason.TOOL_TIMEOUT:
            return ToolTimedOut(outcome)
        case StopReason.INVALID_OUTPUT:
            return InvalidOutput(outcome)
        case _:
            return RetriesExhausted(outcome) if outcome.attempts > 1 else ToolRaised(outcome)
