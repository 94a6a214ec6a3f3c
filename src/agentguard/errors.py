"""Every exception that agentguard raises.

::

    AgentGuardError
    |-- ConfigurationError              the set-up is wrong; nothing ran
    |   |-- PolicyError                 a policy file does not load (carries the findings)
    |   |-- ToolDefinitionError         a tool cannot be registered as declared
    |   `-- MissingExtra                an optional dependency is not installed
    |-- CallRefused                     the tool did not run
    |   |-- UnknownTool
    |   |-- InvalidArguments
    |   |-- PolicyDenied
    |   |-- BudgetExceeded
    |   |-- ApprovalRejected
    |   |-- ApprovalExpired
    |   |-- CircuitOpen
    |   |-- RunKilled
    |   |-- AmbiguousCall               it may have run before; it is not repeated
    |   `-- NoActiveRun
    |-- ApprovalPending                 a person has to decide first
    |-- CallFailed                      the tool was started and did not deliver
    |   |-- ToolRaised
    |   |-- ToolTimedOut
    |   |-- RetriesExhausted
    |   `-- InvalidOutput
    |-- ApprovalError                   a decision that does not count
    |-- MessageError                    a message between agents that cannot be believed
    |-- RunError                        a run was used in a state that does not permit it
    |-- OutputContractError             a result does not satisfy the run's output spec
    |-- SinkError                       an audit sink did not take a record
    |-- AuditError                      an audit trail cannot be read or does not verify
    `-- StoreError                      the store does not answer or contradicts
        |-- StoreConflict
        `-- StoreUnavailable

``CallRefused`` and ``CallFailed`` carry the :class:`~agentguard.Outcome` and two renderings:
``for_model`` (at most 500 characters, free of values that somebody else wrote) and ``for_people``.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import Ambiguous, CallRecord, Failed, Refused, Suspended
from agentguard.domain.decisions import Decision, Finding, StopReason


class AgentGuardError(Exception):
    """Base of everything agentguard raises.

    Attributes:
        code: Stable code of the error, ``""`` where the class says it all.
    """

    code: str = ""


class ConfigurationError(AgentGuardError):
    """The set-up is wrong: a setting, a file, a combination. Nothing ran."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class PolicyError(ConfigurationError):
    """A policy or configuration file does not load.

    Attributes:
        findings: What is wrong, each with code, file, line and column.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)), code=self.findings[0].code if findings else "AG100")


class ToolDefinitionError(ConfigurationError):
    """A tool cannot be registered as it is declared."""


class MissingExtra(ConfigurationError, ImportError):
    """An optional dependency is not installed; the message is the pip line."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'agentguard[{extra}]'", code="AG001")
        self.extra = extra


class CallRefused(AgentGuardError):
    """The tool did not run.

    Attributes:
        outcome: The refusal as a value.
    """

    def __init__(self, outcome: Refused) -> None:
        super().__init__(outcome.detail or outcome.message)
        self.outcome = outcome
        self.code = outcome.code

    @property
    def reason(self) -> StopReason:
        """Why, as a stable word."""
        return self.outcome.reason

    @property
    def decision(self) -> Decision | None:
        """The policy decision, when it came that far."""
        return self.outcome.decision

    @property
    def rule_id(self) -> str | None:
        """Id of the rule that decided, ``default`` when none matched, ``None`` when policy was not reached."""
        return self.outcome.decision.rule_id if self.outcome.decision else None

    @property
    def policy_digest(self) -> str | None:
        """Digest of the policy in force, or ``None`` when policy was not reached."""
        return self.outcome.decision.policy_digest if self.outcome.decision else None

    @property
    def retryable(self) -> bool:
        """Whether the same call may be allowed later."""
        return self.outcome.retryable

    @property
    def for_model(self) -> str:
        """What the model may see."""
        return self.outcome.message

    @property
    def for_people(self) -> str:
        """The complete reason."""
        return self.outcome.detail or self.outcome.message


class UnknownTool(CallRefused):
    """No such tool is registered."""


class InvalidArguments(CallRefused):
    """The arguments do not satisfy the tool's input schema."""


class PolicyDenied(CallRefused):
    """No rule allows the call, or one denies it."""


class BudgetExceeded(CallRefused):
    """A budget, a time limit or the loop limit is used up."""


class ApprovalRejected(CallRefused):
    """A person said no."""


class ApprovalExpired(CallRefused):
    """Nobody decided in time. This is not a rejection."""


class CircuitOpen(CallRefused):
    """The tool failed too often and rests."""


class RunKilled(CallRefused):
    """A kill switch is on, or the run has ended."""


class AmbiguousCall(CallRefused):
    """The call may have taken effect before; it is not repeated until that is resolved.

    Attributes:
        call: What the store knows of it.
    """

    def __init__(self, outcome: Ambiguous) -> None:
        message = outcome.message or "The outcome of an earlier attempt of this call is unknown."
        super().__init__(
            Refused(
                reason=StopReason.AMBIGUOUS,
                decision=outcome.decision,
                message=message,
                retryable=False,
                detail=f"{message} Resolve it with gateway.runs.resolve({outcome.call.run_id!r}, "
                f"{outcome.call.call_id!r}, ...) or give the tool a probe.",
                call_id=outcome.call_id,
                code="AG680",
            )
        )
        self.call: CallRecord = outcome.call


class NoActiveRun(CallRefused):
    """A governed function was called outside a run."""


class ApprovalPending(AgentGuardError):
    """A person has to decide first; call again with the same ``call_id`` after that.

    Attributes:
        request: The durable request.
        outcome: The suspension as a value.
    """

    code = "AG630"

    def __init__(self, outcome: Suspended) -> None:
        self.outcome = outcome
        self.request: ApprovalRequest = outcome.request
        super().__init__(
            f"{outcome.request.tool} needs approval {outcome.request.id}; decide with "
            f"gateway.approvals.approve({outcome.request.id!r}, by=...) or "
            f"'agentguard approvals approve {outcome.request.id}', then call again with "
            f"call_id={outcome.request.call_id!r}"
        )

    @property
    def reason(self) -> StopReason:
        """``approval_pending``."""
        return StopReason.APPROVAL_PENDING

    @property
    def for_model(self) -> str:
        """What the model may see."""
        return "This action needs the approval of a person. It has not been carried out yet."


class CallFailed(AgentGuardError):
    """The tool was started and did not deliver.

    Attributes:
        outcome: The failure as a value; ``outcome.error`` is the original exception.
    """

    def __init__(self, outcome: Failed) -> None:
        super().__init__(f"{outcome.reason.value}: {outcome.error}")
        self.outcome = outcome

    @property
    def reason(self) -> StopReason:
        """``tool_error``, ``tool_timeout`` or ``invalid_output``."""
        return self.outcome.reason

    @property
    def for_model(self) -> str:
        """What the model may see: never the tool's own words."""
        return self.outcome.message

    @property
    def for_people(self) -> str:
        """The complete reason."""
        return str(self)


class ToolRaised(CallFailed):
    """The tool raised an exception."""


class ToolTimedOut(CallFailed):
    """The tool did not return in time."""


class RetriesExhausted(CallFailed):
    """Every attempt failed."""


class InvalidOutput(CallFailed):
    """The tool returned something that its output schema does not permit, or that cannot be recorded."""


class ApprovalError(AgentGuardError):
    """A decision that does not count: unknown request, decided before, expired, wrong role, requester."""

    def __init__(self, message: str, *, code: str = "AG631") -> None:
        super().__init__(message)
        self.code = code


class MessageError(AgentGuardError):
    """A message between agents is forged, changed, stale, meant for somebody else, or was received before."""


class RunError(AgentGuardError):
    """A run was used in a state that does not permit it."""


class OutputContractError(AgentGuardError):
    """A result does not satisfy the run's output spec."""


class SinkError(AgentGuardError):
    """An audit sink did not take a record."""


class AuditError(AgentGuardError):
    """An audit trail cannot be written, read or does not verify."""

    def __init__(self, message: str, *, code: str = "AG700") -> None:
        super().__init__(message)
        self.code = code


class StoreError(AgentGuardError):
    """The store does not answer as it must."""


class StoreConflict(StoreError):
    """Somebody else was first, or the row is not what the caller believed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot write."""
