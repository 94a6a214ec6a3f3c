"""What the rulebook says: verdicts, the rules behind them, and the stop reasons a person sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

VerdictName: TypeAlias = Literal["allow", "deny", "require_approval"]
Mode: TypeAlias = Literal["enforce", "observe"]


class StopReason(StrEnum):
    """Why a call did not run or a run ended; stable, lower-case, safe to store and to show."""

    COMPLETED = "completed"
    POLICY_DENIED = "policy_denied"
    UNKNOWN_TOOL = "unknown_tool"
    INVALID_ARGUMENTS = "invalid_arguments"
    DEFINITION_CHANGED = "definition_changed"
    BUDGET_STEPS = "budget_steps"
    BUDGET_TOOL_CALLS = "budget_tool_calls"
    BUDGET_TOKENS = "budget_tokens"
    BUDGET_COST = "budget_cost"
    BUDGET_TIME = "budget_time"
    BUDGET_COUNTER = "budget_counter"
    RATE_LIMITED = "rate_limited"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_REJECTED = "approval_rejected"
    APPROVAL_EXPIRED = "approval_expired"
    KILLED = "killed"
    CIRCUIT_OPEN = "circuit_open"
    CONCURRENCY = "concurrency"
    AMBIGUOUS = "ambiguous"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    TOOL_ERROR = "tool_error"
    TOOL_TIMEOUT = "tool_timeout"
    INVALID_OUTPUT = "invalid_output"
    CREDENTIALS_UNAVAILABLE = "credentials_unavailable"
    LOOP_DETECTED = "loop_detected"
    NO_ACTIVE_RUN = "no_active_run"
    RUN_ENDED = "run_ended"
    GATEWAY_CLOSED = "gateway_closed"
    STORE_UNAVAILABLE = "store_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    CANCELLED = "cancelled"
    INTERNAL_ERROR = "internal_error"
    UNGOVERNED_RESULT = "ungoverned_result"
    ASYNC_TOOL = "async_tool"
    UNENFORCEABLE = "unenforceable"

    # The same under the names that are stored and shown, so that neither spelling is a mistake.
    completed = COMPLETED
    policy_denied = POLICY_DENIED
    unknown_tool = UNKNOWN_TOOL
    invalid_arguments = INVALID_ARGUMENTS
    definition_changed = DEFINITION_CHANGED
    budget_steps = BUDGET_STEPS
    budget_tool_calls = BUDGET_TOOL_CALLS
    budget_tokens = BUDGET_TOKENS
    budget_cost = BUDGET_COST
    budget_time = BUDGET_TIME
    budget_counter = BUDGET_COUNTER
    rate_limited = RATE_LIMITED
    approval_pending = APPROVAL_PENDING
    approval_rejected = APPROVAL_REJECTED
    approval_expired = APPROVAL_EXPIRED
    killed = KILLED
    circuit_open = CIRCUIT_OPEN
    concurrency = CONCURRENCY
    ambiguous = AMBIGUOUS
    idempotency_conflict = IDEMPOTENCY_CONFLICT
    tool_error = TOOL_ERROR
    tool_timeout = TOOL_TIMEOUT
    invalid_output = INVALID_OUTPUT
    credentials_unavailable = CREDENTIALS_UNAVAILABLE
    loop_detected = LOOP_DETECTED
    no_active_run = NO_ACTIVE_RUN
    run_ended = RUN_ENDED
    gateway_closed = GATEWAY_CLOSED
    store_unavailable = STORE_UNAVAILABLE
    audit_unavailable = AUDIT_UNAVAILABLE
    cancelled = CANCELLED
    internal_error = INTERNAL_ERROR
    ungoverned_result = UNGOVERNED_RESULT
    async_tool = ASYNC_TOOL
    unenforceable = UNENFORCEABLE


@dataclass(frozen=True, slots=True)
class RuleRef:
    """A rule that took part in a decision, and where it stands.

    Attributes:
        id: The rule's ``id``, or a generated one (``allow#3``) when the file gives none.
        file: File or source name, or ``None`` for rules built in Python.
        line: 1-based line of the rule, or ``None``.
        verb: ``allow``, ``deny``, ``require_approval`` or ``constrain``.
        layer: Name of the policy (layer) the rule belongs to.
    """

    id: str
    file: str | None = None
    line: int | None = None
    verb: str = "allow"
    layer: str = ""

    def __str__(self) -> str:
        where = f" ({self.file}:{self.line})" if self.file and self.line else ""
        return f"{self.id}{where}"


@dataclass(frozen=True, slots=True)
class EscalationStep:
    """One rung of the ladder: after ``after_s`` seconds these roles may decide too."""

    after_s: float
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApprovalTerms:
    """What an approval must satisfy; several rules add up to the strictest terms.

    Attributes:
        role_sets: For each set, some approver must hold at least one of its roles.
        quorum: Number of distinct approvers needed.
        expires_s: Seconds until an undecided request expires.
        separate: The approver must differ from the requester (the run's user and agent).
        edit: The approver may change the arguments.
        escalate: Ladder of further roles, by time.
    """

    role_sets: tuple[tuple[str, ...], ...] = ()
    quorum: int = 1
    expires_s: float = 3600.0
    separate: bool = True
    edit: bool = True
    escalate: tuple[EscalationStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Obligations:
    """What must be done along with an allowed call; the tighter of several wins.

    Attributes:
        redact_arguments: Dotted paths of arguments replaced by ``[redacted]`` before anything sees them.
        redact_output: Dotted paths of the result replaced before it is returned or recorded.
        clamp: Pairs of dotted path and ``(minimum, maximum)``, either may be ``None``.
        rewrite: Pairs of dotted path and the value that replaces what the model gave.
        timeout_s: Upper bound for the tool's timeout, in seconds.
        memory_bytes: Memory limit that the sandbox must enforce.
        cpu: CPU limit (cores) that the sandbox must enforce.
        network: ``none`` when the sandbox must cut the network off.
        messages: Guidance for the model, in rule order.
    """

    redact_arguments: tuple[str, ...] = ()
    redact_output: tuple[str, ...] = ()
    clamp: tuple[tuple[str, tuple[Any, Any]], ...] = ()
    rewrite: tuple[tuple[str, Any], ...] = ()
    timeout_s: float | None = None
    memory_bytes: int | None = None
    cpu: float | None = None
    network: Literal["none"] | None = None
    messages: tuple[str, ...] = ()

    @property
    def changes_arguments(self) -> bool:
        """Whether the arguments that run differ from those that were decided on."""
        return bool(self.redact_arguments or self.clamp or self.rewrite)

    @property
    def needs_sandbox(self) -> bool:
        """Whether only a process of its own can honour the limits."""
        return self.memory_bytes is not None or self.cpu is not None or self.network is not None


NO_OBLIGATIONS = Obligations()


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of the policy to one call. It has no effect by itself.

    Attributes:
        verdict: ``allow``, ``deny`` or ``require_approval``. In observe mode this is still what the
            rules say; ``blocking`` tells whether it is acted on.
        rules: The rules that decided, in file order; empty when nothing matched.
        reasons: One sentence per rule or missing condition, complete, for people.
        obligations: What must be done along with the call.
        policy_digest: SHA-256 (hex) over the canonical form of all layers in force.
        unlock: What would be allowed instead: smallest changes, and who could approve.
        approval: Terms of the approval for ``require_approval``.
        mode: ``enforce``, or ``observe`` when the verdict is recorded and not acted on.
        message: Text for the model, at most 500 characters and free of the call's own values.
        stateful: The verdict depends on labels of the run, so it must be taken again if they changed.
    """

    verdict: VerdictName
    rules: tuple[RuleRef, ...] = ()
    reasons: tuple[str, ...] = ()
    obligations: Obligations = NO_OBLIGATIONS
    policy_digest: str = ""
    unlock: tuple[str, ...] = ()
    approval: ApprovalTerms | None = None
    mode: Mode = "enforce"
    message: str = ""
    stateful: bool = False

    @property
    def allowed(self) -> bool:
        """Whether the call may go on now without a person."""
        return self.verdict == "allow" or self.mode == "observe"

    @property
    def rule_id(self) -> str:
        """Id of the first rule that decided, or ``default``."""
        return self.rules[0].id if self.rules else "default"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a check found in a file, a tool or a set of policies.

    Attributes:
        code: Stable code, ``AG1xx`` (file) to ``AG5xx`` (layers).
        message: What is wrong and what to do.
        severity: ``error`` (does not load), ``warning`` or ``info``.
        file: File or source name.
        line: 1-based line, 0 when there is none.
        column: 1-based column, 0 when there is none.
        excerpt: The source line, when there is one.
        hint: "did you mean" or another way out, may be empty.
    """

    code: str
    message: str
    severity: Literal["error", "warning", "info"] = "error"
    file: str | None = None
    line: int = 0
    column: int = 0
    excerpt: str | None = None
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f"{self.file or '<policy>'}:{self.line}:{self.column}: " if self.line else ""
        text = f"{where}{self.code} {self.message}"
        if self.hint:
            text += f" ({self.hint})"
        if self.excerpt is not None:
            text += f"\n    {self.excerpt}\n    {' ' * max(self.column - 1, 0)}^"
        return text
