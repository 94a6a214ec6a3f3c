"""agentguard: one door between AI agents and real systems.

Wrap tools with :func:`tool`, say in YAML what may happen, and let every call go through a
:class:`ToolGateway`: default deny, budgets, approvals, safe execution, tamper-evident audit.

Names are imported when they are first used, so that a program which only mentions agentguard does not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard._version import __version__

if TYPE_CHECKING:
    from agentguard.approval.approvers import CallbackApprover, ConsoleApprover, WebhookApprover
    from agentguard.audit.redaction import PatternRedactor
    from agentguard.audit.sinks import CallbackSink, JsonlSink, MemorySink
    from agentguard.audit.verifying import verify_export
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
        MessageError,
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
    from agentguard.runs.messages import SignedMessage
    from agentguard.runs.report import RunReport
    from agentguard.stores import open_store
    from agentguard.tools.registry import ToolRegistry
    from agentguard.tools.tool import Tool, tool
    from agentguard.tracing import JsonFormatter, Telemetry

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
    "JsonFormatter",
    "JsonlSink",
    "LlmReservation",
    "MemorySink",
    "MessageError",
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
    "SignedMessage",
    "SinkError",
    "StateEntry",
    "StaticCredentials",
    "StopReason",
    "StoreConflict",
    "StoreError",
    "StoreUnavailable",
    "Suspended",
    "Telemetry",
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
    "verify_export",
]

_HOMES = {
    "AgentGuardError": "agentguard.errors",
    "Ambiguous": "agentguard.domain.calls",
    "AmbiguousCall": "agentguard.errors",
    "ApprovalError": "agentguard.errors",
    "ApprovalExpired": "agentguard.errors",
    "ApprovalPending": "agentguard.errors",
    "ApprovalRejected": "agentguard.errors",
    "ApprovalRequest": "agentguard.domain.approvals",
    "ApproverIdentity": "agentguard.domain.approvals",
    "AuditError": "agentguard.errors",
    "AuditRecord": "agentguard.domain.events",
    "Breaker": "agentguard.domain.plans",
    "Budget": "agentguard.budget.budget",
    "BudgetExceeded": "agentguard.errors",
    "BudgetLine": "agentguard.domain.usage",
    "CallContext": "agentguard.domain.context",
    "CallFailed": "agentguard.errors",
    "CallRecord": "agentguard.domain.calls",
    "CallRefused": "agentguard.errors",
    "CallableCredentials": "agentguard.resilience.credentials",
    "CallbackApprover": "agentguard.approval.approvers",
    "CallbackSink": "agentguard.audit.sinks",
    "CircuitOpen": "agentguard.errors",
    "Completed": "agentguard.domain.calls",
    "ConfigurationError": "agentguard.errors",
    "ConsoleApprover": "agentguard.approval.approvers",
    "Contract": "agentguard.domain.context",
    "Credentials": "agentguard.resilience.credentials",
    "Decision": "agentguard.domain.decisions",
    "EnvCredentials": "agentguard.resilience.credentials",
    "Failed": "agentguard.domain.calls",
    "Finding": "agentguard.domain.decisions",
    "InvalidArguments": "agentguard.errors",
    "InvalidOutput": "agentguard.errors",
    "JsonFormatter": "agentguard.tracing",
    "JsonlSink": "agentguard.audit.sinks",
    "LlmReservation": "agentguard.gateway",
    "MemorySink": "agentguard.audit.sinks",
    "MessageError": "agentguard.errors",
    "MissingExtra": "agentguard.errors",
    "NoActiveRun": "agentguard.errors",
    "Obligations": "agentguard.domain.decisions",
    "Outcome": "agentguard.domain.calls",
    "OutputContractError": "agentguard.errors",
    "PatternRedactor": "agentguard.audit.redaction",
    "Policy": "agentguard.policy.policies",
    "PolicyDenied": "agentguard.errors",
    "PolicyError": "agentguard.errors",
    "Price": "agentguard.budget.pricing",
    "Prices": "agentguard.budget.pricing",
    "ProbeResult": "agentguard.domain.plans",
    "Refused": "agentguard.domain.calls",
    "RetriesExhausted": "agentguard.errors",
    "Retry": "agentguard.domain.plans",
    "RuleRef": "agentguard.domain.decisions",
    "Run": "agentguard.gateway",
    "RunContext": "agentguard.domain.context",
    "RunError": "agentguard.errors",
    "RunKilled": "agentguard.errors",
    "RunRecord": "agentguard.domain.runs",
    "RunReport": "agentguard.runs.report",
    "Sandbox": "agentguard.domain.plans",
    "SharedState": "agentguard.gateway",
    "SignedMessage": "agentguard.runs.messages",
    "SinkError": "agentguard.errors",
    "StateEntry": "agentguard.domain.runs",
    "StaticCredentials": "agentguard.resilience.credentials",
    "StopReason": "agentguard.domain.decisions",
    "StoreConflict": "agentguard.errors",
    "StoreError": "agentguard.errors",
    "StoreUnavailable": "agentguard.errors",
    "Suspended": "agentguard.domain.calls",
    "Telemetry": "agentguard.tracing",
    "Tool": "agentguard.tools.tool",
    "ToolDefinitionError": "agentguard.errors",
    "ToolGateway": "agentguard.gateway",
    "ToolRaised": "agentguard.errors",
    "ToolRegistry": "agentguard.tools.registry",
    "ToolSpec": "agentguard.domain.plans",
    "ToolTimedOut": "agentguard.errors",
    "UnknownTool": "agentguard.errors",
    "Usage": "agentguard.domain.usage",
    "Verdict": "agentguard.domain.approvals",
    "WebhookApprover": "agentguard.approval.approvers",
    "open_store": "agentguard.stores",
    "tool": "agentguard.tools.tool",
    "verify_export": "agentguard.audit.verifying",
}
"""Where each public name is defined."""

if not TYPE_CHECKING:  # type checkers know the names from the imports above, and complain about any other

    def __getattr__(name):
        """Import a public name when it is first used."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'agentguard' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__():
        """The public names, imported or not."""
        return sorted({*globals(), *__all__})
