"""What the flow knows before a call: the compiled tools, policy and settings of one gateway.

Everything here is made once, when the gateway is built or reloaded; a call only looks things up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic_core import from_json, to_json

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision
from agentguard.domain.events import Facts
from agentguard.domain.plans import ToolSpec
from agentguard.domain.usage import COST, NANO, STEPS, TOOL_CALLS, TOOL_PREFIX, Amounts, Meter
from agentguard.protocols import Redactor
from agentguard.resilience.breaking import Breakers

if TYPE_CHECKING:
    from agentguard.tools.registry import ToolRegistry
    from agentguard.tools.tool import Tool

LEASE_S = 900.0
"""Lease of a call whose tool declares no timeout: after this silence another process calls it lost."""

MARGIN_S = 30.0
"""What a lease adds to the longest time that a call's attempts and waits can take."""


class Rules(Protocol):
    """Decides; :class:`agentguard.policy.Rulebook`, or something that watches it."""

    def decide(
        self, tool: str, arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now_ns: int
    ) -> Decision:
        """The policy's answer to one call; never raises."""
        ...


class Secrets(Protocol):
    """Knows the secrets that are in use, to remove them from whatever leaves the gateway."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def redact(self, value: Any) -> Any:
        """The JSON value without them."""
        ...

    def redact_bytes(self, data: bytes) -> bytes:
        """The JSON text without them."""
        ...


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """How calls of one tool are charged and executed.

    Attributes:
        tool: The tool.
        reserve: What one call holds: price for all attempts.
        attempts: Tries at most.
        lease_ns: Lease of a call.
        cost_nano: Price of one attempt in nano-dollars.
        rerun: A call whose start was lost may be started again, and one that failed tried again.
        observes: The body changes nothing, so one that was given up has done no harm.
        sandboxed: The tool asks for limits.
        plain: Nothing stands around the body: one attempt, no time limit, no breaker, no credentials.
        succeeded: Facts of the outcome record of a call that succeeds at once.
    """

    tool: Tool
    reserve: Amounts
    attempts: int
    lease_ns: int
    cost_nano: int
    rerun: bool
    observes: bool
    sandboxed: bool
    plain: bool
    succeeded: Facts

    def used(self, attempts: int) -> Amounts:
        """What ``attempts`` tries have used."""
        if self.cost_nano == 0 or attempts == self.attempts:
            return self.reserve
        return (*self.reserve[:-1], (COST, self.cost_nano * attempts))


def plan(tool: Tool) -> ToolPlan:
    """Work out once what every call of ``tool`` needs."""
    spec: ToolSpec = tool.spec
    attempts = spec.retry.attempts if spec.retry is not None else 1
    cost = int(spec.cost_usd * NANO)
    reserve: list[tuple[str, int]] = [(STEPS, 1), (TOOL_CALLS, 1), (TOOL_PREFIX + spec.name, 1)]
    if cost:
        reserve.append((COST, cost * attempts))
    longest = LEASE_S
    if spec.timeout_s is not None:
        longest = spec.timeout_s * attempts + MARGIN_S
        if spec.retry is not None:
            longest += (spec.retry.max_wait_s + spec.retry.jitter_s) * (attempts - 1)
    return ToolPlan(
        tool=tool,
        reserve=tuple(reserve),
        attempts=attempts,
        lease_ns=int(longest * NANO),
        cost_nano=cost,
        rerun=spec.effect in ("pure", "read", "idempotent"),
        observes=spec.effect in ("pure", "read"),
        sandboxed=spec.sandbox is not None,
        plain=attempts == 1 and spec.timeout_s is None and spec.breaker is None and not spec.credentials,
        succeeded=outcome_facts(spec.name, 1, None, None, "succeeded"),
    )


def outcome_facts(tool: str, attempts: int, error: str | None, reason: str | None, status: str) -> Facts:
    """Facts of an outcome record, without those of the single call."""
    return {"attempts": attempts, "error": error, "reason": reason, "status": status, "tool": tool}


@dataclass(slots=True)
class House:
    """Everything of one gateway that the flow looks up.

    Attributes:
        registry: Tools by name.
        plans: Execution plan per tool name.
        rules: Compiled policy.
        secrets: Secrets in use.
        redactor: The host's own redactor, or ``None``.
        breakers: Circuit breakers of this process.
        has_approver: There is an inline approver to ask.
        has_sinks: There are sinks to publish to.
        max_repeats: Identical consecutive calls of a model before it counts as a loop, or ``None``.
        keep_bodies: Arguments and results are kept beside the audit chain.
        locked_out: Tools without a plan because their definition is not the locked one, each with the reason.
    """

    registry: ToolRegistry
    plans: Mapping[str, ToolPlan]
    rules: Rules
    secrets: Secrets
    redactor: Redactor | None = None
    breakers: Breakers = field(default_factory=Breakers)
    has_approver: bool = False
    has_sinks: bool = False
    max_repeats: int | None = None
    keep_bodies: bool = True
    locked_out: Mapping[str, str] = field(default_factory=dict)

    def clean(self, text: str) -> str:
        """A text without the secrets that are in use."""
        return str(self.secrets.redact(text)) if self.secrets else text

    def recordable(self, body: bytes) -> bytes:
        """JSON bytes as they may be recorded: without secrets, and without what the host's redactor removes.

        Raises whatever the host's redactor raises.
        """
        if self.secrets:
            body = self.secrets.redact_bytes(body)
        if self.redactor is not None:
            body = to_json(self.redactor.redact(from_json(body)))
        return body


@dataclass(slots=True)
class RunView:
    """What the flow must know of the run it works for; labels change while the run lives.

    Attributes:
        context: Identity.
        meters: Accounts to charge.
        prefix: First part of every call key of the run.
        seen: Data labels as last seen, and their version. One pair, read and replaced as a whole: a decision
            taken on old labels must never be sent with a new version by another thread's doing.
        max_repeats: The run's own loop limit, or ``None`` for the gateway's.
        intents: Facts of intent records, per tool, with the decision they belong to.
    """

    context: RunContext
    meters: tuple[Meter, ...]
    prefix: str
    seen: tuple[tuple[str, ...], int] = ((), 0)
    max_repeats: int | None = None
    intents: dict[str, tuple[Decision, Facts]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Data labels as last seen."""
        return self.seen[0]

    def learn(self, labels: tuple[str, ...], version: int) -> None:
        """Take over labels of ``version``, unless newer ones are known already."""
        if version >= self.seen[1]:
            self.seen = (labels, version)

    def gain(self, labels: tuple[str, ...]) -> None:
        """Add labels without a version: the store knows better, and says so at the next call."""
        known, version = self.seen
        if not set(labels) <= set(known):
            self.seen = (tuple(sorted({*known, *labels})), version)


@dataclass
class Job:
    """One proposed call.

    Attributes:
        tool: Name of the tool.
        arguments: What the caller gave.
        run: The run it belongs to.
        call_id: Id in the run.
        explicit: The id came from the caller (a model), so the call may come again.
        now_ns: Wall-clock reading for time conditions.
        colour: Driver that carries it out.
        expected: The function that was called, when it was called as a decorated function.
        idempotency_key: Key given by the caller, or ``None``.
        fallback_of: Tools that failed before, when this call stands in for another.
        decision: The decision taken, for spans and logs; set by the flow, as everything below.
        key: Store key.
        seq: Audit record of the intent or the refusal, 0 when there is none.
        ids: Facts that name the call in its records.
        approval_id: Approval it waits for or used, if any.
        arguments_json: Effective arguments as they are recorded.
        result_json: Result as it is recorded.
    """

    tool: str
    arguments: Mapping[str, Any]
    run: RunView
    call_id: str
    explicit: bool
    now_ns: int
    colour: Literal["blocking", "awaiting"]
    expected: Tool | None = None
    idempotency_key: str | None = None
    fallback_of: tuple[str, ...] = ()
    # Defaults of the class, so that they cost nothing where a job is made.
    decision: Decision | None = field(default=None, init=False)
    key: str = field(default="", init=False)
    ids: tuple[tuple[str, str], ...] = field(default=(), init=False)
    seq: int = field(default=0, init=False)
    approval_id: str | None = field(default=None, init=False)
    arguments_json: bytes = field(default=b"", init=False)
    result_json: bytes = field(default=b"", init=False)


def quick_fingerprint(tool: str, arguments: Mapping[str, Any], slow: Callable[[str, Mapping[str, Any]], str]) -> str:
    """Digest of tool and arguments: over a plain encoding when all values are scalars, canonical otherwise.

    Two equal argument sets always take the same of the two ways, so their fingerprints are equal.
    """
    parts = [tool]
    for name in sorted(arguments):
        value = arguments[name]
        kind = type(value)
        if kind is str:
            parts.append(f"{len(name)}:{name}=s{len(value)}:{value}")
        elif kind is int or kind is bool or value is None:
            parts.append(f"{len(name)}:{name}={value!r}")
        else:
            return slow(tool, arguments)
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
