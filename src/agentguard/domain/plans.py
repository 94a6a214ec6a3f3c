"""What is known of a tool before anyone calls it: the registry entry and its execution settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

EffectClass: TypeAlias = Literal["pure", "read", "idempotent", "irreversible"]
"""``pure``: no I/O. ``read``: observes, changes nothing. ``idempotent``: changes something, and doing it
twice with the same key is the same as once. ``irreversible``: everything else, and the default."""

RiskTier: TypeAlias = Literal["low", "medium", "high", "critical"]

EFFECTS: tuple[EffectClass, ...] = ("pure", "read", "idempotent", "irreversible")
RISKS: tuple[RiskTier, ...] = ("low", "medium", "high", "critical")

Trust: TypeAlias = Literal["trusted", "untrusted"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed call is tried again, and how long to wait in between.

    Attributes:
        attempts: Tries in total, the first included.
        wait_s: Wait before the first retry, in seconds; doubles each time (exponential backoff).
        max_wait_s: No single wait is longer than this, in seconds.
        jitter_s: Up to this many seconds are added at random to each wait.
        on: Exception types that are worth another try; timeouts count as :class:`TimeoutError`.
    """

    attempts: int = 3
    wait_s: float = 0.1
    max_wait_s: float = 10.0
    jitter_s: float = 0.1
    on: tuple[type[Exception], ...] = (Exception,)


@dataclass(frozen=True, slots=True)
class Breaker:
    """When to stop calling a tool that keeps failing.

    Attributes:
        failures: Consecutive failures that open the circuit.
        reset_s: Seconds until one probe call is let through again.
    """

    failures: int = 5
    reset_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Limits for a body that runs in a process of its own.

    Attributes:
        cpu_s: CPU seconds, or ``None`` for no limit.
        memory_bytes: Address space in bytes, or ``None`` for no limit.
        network: ``none`` cuts the network off; ``host`` leaves it as it is.
    """

    cpu_s: float | None = None
    memory_bytes: int | None = None
    network: Literal["none", "host"] = "host"


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One entry of the registry: everything that is known of a tool except its body.

    Attributes:
        name: Unique in a registry, ``[A-Za-z0-9_.:/-]{1,128}``.
        description: For the model; one paragraph.
        input_schema: JSON Schema 2020-12 of the arguments, an object schema.
        output_schema: JSON Schema of the result, or ``None`` when the result is not checked.
        permissions: What the caller must be permitted to do, for selectors in policies.
        owner: Team or person answerable for the tool.
        version: Version of the definition, shown in audit and traces.
        deprecated: ``True`` when callers should move on.
        replaced_by: Name of the successor of a deprecated tool.
        cost_usd: Price of one attempt in US dollars, exact.
        effect: Effect class; decides about retries, timeouts and ambiguity.
        risk: Risk tier, for selectors in policies.
        output_labels: Data labels that a run carries after it has seen the output.
        output_trust: Per output field (``*`` for keys that are data) who may have written it.
        cosmetic_args: Arguments left out of the approval digest (they do not change what happens).
        timeout_s: Seconds after which the caller no longer waits, or ``None``.
        retry: Retry settings, or ``None`` for one attempt.
        breaker: Circuit breaker settings, or ``None``.
        concurrency: Calls of the tool that may run at once across all processes, or ``None``.
        fallback: Name of the tool that is called, as a governed call of its own, when this one fails.
        sandbox: Process limits, or ``None``.
        credentials: Names of the secrets that are leased for each call after it is allowed.
        idempotency_key: Names of the arguments that make two calls the same one across runs, or a
            function of the effective arguments that returns the key, or ``None``.
        inline: The body does no I/O and runs in the event loop's own thread.
        audit: ``False`` leaves calls out of the audit trail (pure and read tools only).
        takes_key: The body has a :class:`~agentguard.CallContext` parameter and so learns the idempotency key.
        digest: SHA-256 (hex) over the canonical definition.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None = None
    permissions: tuple[str, ...] = ()
    owner: str | None = None
    version: str = "1"
    deprecated: bool = False
    replaced_by: str | None = None
    cost_usd: Decimal = Decimal(0)
    effect: EffectClass = "irreversible"
    risk: RiskTier = "medium"
    output_labels: tuple[str, ...] = ()
    output_trust: Mapping[str, Trust] = field(default_factory=dict)
    cosmetic_args: tuple[str, ...] = ()
    timeout_s: float | None = None
    retry: Retry | None = None
    breaker: Breaker | None = None
    concurrency: int | None = None
    fallback: str | None = None
    sandbox: Sandbox | None = None
    credentials: tuple[str, ...] = ()
    idempotency_key: tuple[str, ...] | Callable[[Mapping[str, Any]], str] | None = None
    inline: bool = False
    audit: bool = True
    takes_key: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found out about a call whose fate is unknown.

    Attributes:
        state: ``completed``: the effect is there, with ``value`` as the result. ``absent``: it never
            happened, so the call may run. ``unknown``: the probe cannot tell.
        value: The result the call would have returned, for ``completed``.
    """

    state: Literal["completed", "absent", "unknown"]
    value: Any = None
