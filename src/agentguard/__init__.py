"""agentguard: one door between AI agents and real systems.

Wrap tools with :func:`tool`, say in YAML what may happen, and let every call go through a
:class:`ToolGateway`: default deny, budgets, approvals, safe execution, tamper-evident audit.
"""

from agentguard._version import __version__
from agentguard.approval.approvers import CallbackApprover, ConsoleApprover, WebhookApprover
from agentguard.audit.redaction import PatternRedactor
from agentguard.audit.sinks import CallbackSink, JsonlSink, MemorySink
from agentguard.budget.budget import Budget
from agentguard.budget.pricing import Price, Prices
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.domain.calls import Ambiguous, CallRecord, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.context import CallContext, Contract, RunContext
from agentguard.domain.decisions import Decision, Finding, Obligations, RuleRef, StopReason
from agentguard.domain.events import AuditRecord
from agentguard.domain.plans import Breaker, ProbeResult, Retry, Sandbox, ToolSpec
from agentguard.domain.runs import RunRecord, StateEntry
from agentguard.domain.usage import BudgetLine, Usage
from agentguard.errors import (
    AgentGuardError,
    AmbiguousCall,
    ApprovalError,
    ApprovalExpired,
    ApprovalPending,
    ApprovalRejected,
    AuditError,
    BudgetExceeded,
    CallFailed,
    CallRefused,
    CircuitOpen,
    ConfigurationError,
    InvalidArguments,
    InvalidOutput,
    MissingExtra,
    NoActiveRun,
    OutputContractError,
    PolicyDenied,
    PolicyError,
    RetriesExhausted,
    RunError,
    RunKilled,
    SinkError,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    ToolDefinitionError,
    ToolRaised,
    ToolTimedOut,
    UnknownTool,
)
from agentguard.gateway import LlmReservation, Run, SharedState, ToolGateway
from agentguard.policy.policies import Policy
from agentguard.resilience.credentials import (
    CallableCredentials,
    Credentials,
    EnvCredentials,
    StaticCredentials,
)
from agentguard.runs.report import RunReport
from agentguard.stores import open_store
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.tool import Tool, tool

__all__ = [
    "AgentGuardError",
    "Ambiguous",
    "AmbiguousCall",
    "ApprovalError",
    "ApprovalExpired",
    "ApprovalPending",
    "ApprovalRejected",
    "ApprovalRequest",
    "ApproverIdentity",
    "AuditError",
    "AuditRecord",
    "Breaker",
    "Budget",
    "BudgetExceeded",
    "BudgetLine",
    "CallContext",
    "CallFailed",
    "CallRecord",
    "CallRefused",
    "CallableCredentials",
    "CallbackApprover",
    "CallbackSink",
    "CircuitOpen",
    "Completed",
    "ConfigurationError",
    "ConsoleApprover",
    "Contract",
    "Credentials",
    "Decision",
    "EnvCredentials",
    "Failed",
    "Finding",
    "InvalidArguments",
    "InvalidOutput",
    "JsonlSink",
    "LlmReservation",
    "MemorySink",
    "MissingExtra",
    "NoActiveRun",
    "Obligations",
    "Outcome",
    "OutputContractError",
    "PatternRedactor",
    "Policy",
    "PolicyDenied",
    "PolicyError",
    "Price",
    "Prices",
    "ProbeResult",
    "Refused",
    "RetriesExhausted",
    "Retry",
    "RuleRef",
    "Run",
    "RunContext",
    "RunError",
    "RunKilled",
    "RunRecord",
    "RunReport",
    "Sandbox",
    "SharedState",
    "SinkError",
    "StateEntry",
    "StaticCredentials",
    "StopReason",
    "StoreConflict",
    "StoreError",
    "StoreUnavailable",
    "Suspended",
    "Tool",
    "ToolDefinitionError",
    "ToolGateway",
    "ToolRaised",
    "ToolRegistry",
    "ToolSpec",
    "ToolTimedOut",
    "UnknownTool",
    "Usage",
    "Verdict",
    "WebhookApprover",
    "__version__",
    "open_store",
    "tool",
]
