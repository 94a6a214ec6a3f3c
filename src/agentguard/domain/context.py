"""Who is acting: the frozen identity of a run, and what a tool body may learn about its call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentguard.domain.constructing import quick


@dataclass(frozen=True, slots=True)
class RunContext:
    """The identity under which every call of a run is decided, charged and recorded.

    Attributes:
        run_id: Unique within the tenant; empty when no run is meant, only the question what would be decided.
        agent: Name of the acting agent; never empty.
        tenant: The customer or organisation unit that owns the run; part of every key.
        environment: Deployment boundary the run acts in, for example ``prod`` or ``staging``.
        user: The person on whose behalf the agent acts, if any.
        roles: Roles of that person, sorted.
        session: Conversation or chat the run belongs to, if any.
        team: Team that pays for the run, if any.
        parent: ``run_id`` of the run that spawned this one, if any.
        labels: Data labels the run started with, sorted. Labels gained later live in the store.
        scope: Tool names or globs the run is narrowed to; ``None`` means no narrowing. Each inner
            tuple is one narrowing (a child adds one to its parent's), and a tool must match them all.
        task: What the run was asked to do, in words.

    Lists and sets of roles and labels become tuples, and a flat scope becomes one narrowing, so that a context
    written by hand is compared as those of real runs are.

    Raises:
        TypeError: There is no agent, or roles, labels or scope are one text.
    """

    run_id: str = ""
    agent: str = ""
    tenant: str = "default"
    environment: str = "default"
    user: str | None = None
    roles: tuple[str, ...] = ()
    session: str | None = None
    team: str | None = None
    parent: str | None = None
    labels: tuple[str, ...] = ()
    scope: tuple[tuple[str, ...], ...] | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.agent:
            raise TypeError("RunContext needs the name of the acting agent: RunContext(agent=...)")
        if isinstance(self.roles, str) or isinstance(self.labels, str) or isinstance(self.scope, str):
            raise TypeError("roles, labels and scope of a RunContext are lists of names, not one text")
        for name in ("roles", "labels"):
            names = getattr(self, name)
            if isinstance(names, (list, set, frozenset)):
                object.__setattr__(self, name, tuple(sorted(names)))
        if self.scope is not None and any(isinstance(one, str) for one in self.scope):
            object.__setattr__(self, "scope", (tuple(self.scope),))
        elif isinstance(self.scope, list):
            object.__setattr__(self, "scope", tuple(tuple(one) for one in self.scope))


@quick
@dataclass(frozen=True, slots=True)
class CallContext:
    """What a tool body may know about the call it serves; injected into a parameter of this type.

    Attributes:
        run: Identity of the run.
        call_id: Id of the call within its run.
        idempotency_key: Stable across retries, resumptions and processes; hand it to the service you call.
        attempt: 1 for the first try, 2 for the first retry, and so on.
        deadline_ns: Wall-clock time (ns since the epoch) after which the caller no longer waits, or ``None``.
        approval_id: The approval that permitted the call, if one was needed.
    """

    run: RunContext
    call_id: str
    idempotency_key: str
    attempt: int = 1
    deadline_ns: int | None = None
    approval_id: str | None = None


@dataclass(frozen=True, slots=True)
class Contract:
    """What an agent is asked for and what it must deliver (the agent input contract).

    Attributes:
        task: The assignment in words.
        context: Structured facts given to the agent, JSON values only.
        constraints: Limits in words or values that the agent should know (time, cost, scope).
        output_spec: JSON Schema that the result must satisfy, or ``None`` for any result.
    """

    task: str | None = None
    context: dict[str, Any] | None = None
    constraints: dict[str, Any] | None = None
    output_spec: dict[str, Any] | None = None
