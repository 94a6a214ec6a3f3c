"""A request for a person's decision, and the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentguard.domain.decisions import ApprovalTerms

ApprovalStatus: TypeAlias = Literal[
    "pending", "approved", "rejected", "expired", "consumed", "superseded", "terminated"
]
GrantScope: TypeAlias = Literal["call", "arguments", "run", "until"]
VerdictKind: TypeAlias = Literal["approve", "reject", "escalate", "terminate"]


@dataclass(frozen=True, slots=True)
class ApproverIdentity:
    """Who decides. It must come from an authenticated channel of the host, never from a model.

    Attributes:
        name: Unique name of the person or service.
        roles: Roles the host has verified.
    """

    name: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One approver's answer to one request.

    Attributes:
        kind: ``approve``, ``reject``, ``escalate`` or ``terminate`` (ends the run).
        by: Who answers.
        arguments: Replacement arguments for ``approve``, or ``None`` to run what was shown.
        reason: Why; shown to the model for ``reject``.
        scope: How far an approval reaches: this ``call``, the same ``arguments`` in this run, the tool
            in this ``run``, or the tool for this agent ``until`` a time.
        until_ns: End of an ``until`` scope, ns since the epoch.
        to: Roles for ``escalate``.
    """

    kind: VerdictKind
    by: ApproverIdentity
    arguments: Mapping[str, Any] | None = None
    reason: str | None = None
    scope: GrantScope = "call"
    until_ns: int | None = None
    to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Vote:
    """A recorded answer: who, with which roles, what, when (ns), why."""

    by: str
    roles: tuple[str, ...]
    kind: VerdictKind
    at: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A durable question: may exactly this call run?

    Attributes:
        id: Unguessable, ``ap_`` and 32 hex digits.
        tenant: Owner; every lookup needs it.
        run_id: Run that asks.
        call_key: Store key of the call.
        call_id: Id of the call in its run.
        tool: Name of the tool.
        tool_digest: Digest of the tool's definition as shown.
        arguments: Effective arguments: what will run if approved.
        proposed: What the model asked for, before defaults, clamps and redactions.
        agent: Agent that asks.
        user: Person it acts for, if any.
        environment: Where it acts.
        risk: Risk tier of the tool.
        effect: Effect class of the tool.
        rules: Ids (with file and line) of the rules that asked for approval.
        reasons: Why approval is needed, for people.
        policy_digest: Policy under which the request was made.
        budget_effect: What the call would use, per dimension.
        terms: Roles, quorum, expiry, separation, edit, ladder.
        nonce: Random; makes two equal requests differ.
        digest: SHA-256 (hex) over everything that will run; see ``agentguard.approval.binding``.
        created_at: ns since the epoch, store time.
        expires_at: ns since the epoch.
        status: Where the request stands.
        votes: Answers so far.
        edited: Replacement arguments of the approver, or ``None``.
        scope: Reach of the approval.
        until_ns: End of an ``until`` approval.
        decided_at: When the last deciding vote came, or ``None``.
    """

    id: str
    tenant: str
    run_id: str
    call_key: str
    call_id: str
    tool: str
    tool_digest: str
    arguments: Mapping[str, Any]
    proposed: Mapping[str, Any]
    agent: str
    user: str | None
    environment: str
    risk: str
    effect: str
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    policy_digest: str
    budget_effect: Mapping[str, int]
    terms: ApprovalTerms
    nonce: str
    digest: str
    created_at: int
    expires_at: int
    status: ApprovalStatus = "pending"
    votes: tuple[Vote, ...] = ()
    edited: Mapping[str, Any] | None = None
    scope: GrantScope = "call"
    until_ns: int | None = None
    decided_at: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decided_by(self) -> tuple[str, ...]:
        """Names of those whose votes decided it."""
        return tuple(v.by for v in self.votes if v.kind != "escalate")

    @property
    def rejection(self) -> str | None:
        """Reason given with a rejection, if there is one."""
        return next((v.reason for v in reversed(self.votes) if v.kind in ("reject", "terminate")), None)


@dataclass(frozen=True, slots=True)
class Grant:
    """A standing approval: an approved request with a scope wider than its own call.

    Attributes:
        id: Id of the approval it came from.
        tenant: Owner.
        digest: Digest over what it covers (tool, definition, principal, environment, policy, and the run
            or the arguments where the scope says so).
        expires_at: ns since the epoch.
    """

    id: str
    tenant: str
    digest: str
    expires_at: int
