"""What an agent delivered: the output contract of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentguard.domain.decisions import StopReason
from agentguard.domain.runs import ActionTaken, RunStatus
from agentguard.domain.usage import Usage


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run and how it came about.

    Attributes:
        run_id: The run.
        status: ``running``, ``waiting``, ``completed``, ``failed`` or ``stopped``.
        stop_reason: Why it ended, ``approval_pending`` while it waits, ``None`` while it runs.
        result: What the agent answered, validated against the output spec; ``None`` when there is nothing.
        evidence: What the result rests on, as given by the agent.
        actions_taken: Tool calls in order, with their place in the audit trail.
        warnings: Budget thresholds, deprecations, guidance of the policy, and what the agent itself warned of.
        usage: What was used.
        task: What was asked for.
        audit_head: Hash of the last audit record; whoever keeps it can prove later that nothing was changed.
    """

    run_id: str
    status: RunStatus
    stop_reason: StopReason | None
    result: Any
    evidence: tuple[Any, ...]
    actions_taken: tuple[ActionTaken, ...]
    warnings: tuple[str, ...]
    usage: Usage
    task: str | None = None
    audit_head: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
