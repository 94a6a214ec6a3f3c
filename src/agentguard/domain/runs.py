"""A run as the store knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import StopReason
from agentguard.domain.usage import Meter

RunStatus: TypeAlias = Literal["running", "waiting", "completed", "failed", "stopped"]
StepKind: TypeAlias = Literal[
    "plan",
    "tool_call",
    "model_call",
    "validate",
    "decide",
    "human_approval",
    "retry",
    "fallback",
    "complete",
    "fail",
]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything needed to inspect a run or to go on with it in another process.

    Attributes:
        context: Identity.
        contract: What was asked for.
        meters: Accounts that every call of the run is charged to, its ancestors' included.
        status: Where the run stands.
        labels: Data labels gained so far, sorted.
        version: Grows whenever ``labels`` change.
        started_at: ns since the epoch, store time.
        ended_at: ns since the epoch, or ``None``.
        deadline_ns: Wall-clock end of the run (ns since the epoch), or ``None``.
        working_limit_ns: Working time allowed, or ``None``.
        max_repeats: The run's own loop limit, or ``None`` for the gateway's.
        paused_ns: Time spent waiting for people so far.
        paused_at: When the current wait began, or ``None``.
        stop_reason: Why it ended, or ``None``.
        result: Result, evidence and warnings once ended, JSON values.
        audit_seq: Number of records in the run's chain.
        audit_head: Hash (hex) of the last record, ``""`` before the first.
    """

    context: RunContext
    contract: Contract
    meters: tuple[Meter, ...]
    status: RunStatus
    labels: tuple[str, ...]
    version: int
    started_at: int
    ended_at: int | None = None
    deadline_ns: int | None = None
    working_limit_ns: int | None = None
    max_repeats: int | None = None
    paused_ns: int = 0
    paused_at: int | None = None
    stop_reason: StopReason | None = None
    result: Mapping[str, Any] | None = None
    audit_seq: int = 0
    audit_head: str = ""


@dataclass(frozen=True, slots=True)
class ActionTaken:
    """One tool call in a report: what was called, how it ended, where to find it in the audit trail."""

    call_id: str
    tool: str
    status: str
    seq: int


@dataclass(frozen=True, slots=True)
class StateEntry:
    """One key of the state that the agents of a run share.

    Attributes:
        key: Name.
        value: JSON value.
        version: 1 after the first write; a write must name the version it replaces.
        by: Agent that wrote it.
        at: ns since the epoch.
    """

    key: str
    value: Any
    version: int
    by: str
    at: int


@dataclass(frozen=True, slots=True)
class Switch:
    """A kill switch that is on.

    Attributes:
        scope: ``everything``, ``tenant``, ``agent``, ``user``, ``tool`` or ``run``.
        tenant: Owner, ``""`` for everything.
        value: Name of the agent, user, tool or run, ``""`` where the scope needs none.
        reason: Why.
        by: Who.
        at: ns since the epoch.
    """

    scope: str
    tenant: str
    value: str
    reason: str
    by: str
    at: int


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list: every field that is set must match. ``limit`` rows, newest first."""

    tenant: str | None = None
    agent: str | None = None
    user: str | None = None
    session: str | None = None
    status: RunStatus | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class ApprovalFilter:
    """Which approval requests to list: every field that is set must match. ``limit`` rows, oldest first."""

    tenant: str | None = None
    run_id: str | None = None
    status: str | None = None
    tool: str | None = None
    role: str | None = None
    limit: int = 100
    extra: Mapping[str, Any] = field(default_factory=dict)
