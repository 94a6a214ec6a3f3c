"""What is approved when a tool is approved: the canonical definition and its digest.

What must stay true: every fact that a model, a policy or a reviewer relies on is in the definition, so that a
tool that changed has another digest. Functions among the settings count by their qualified name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentguard import canonical, units
from agentguard.domain.plans import ToolSpec
from agentguard.errors import ToolDefinitionError


def _qualified(function: Any) -> str:
    target = function if hasattr(function, "__qualname__") else type(function)
    return f"{target.__module__}:{target.__qualname__}"


def definition_of(spec: ToolSpec, probe: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The definition as a JSON value: what the digest is taken over and what a lock file shows."""
    key = spec.idempotency_key
    retry, breaker, sandbox = spec.retry, spec.breaker, spec.sandbox
    return {
        "name": spec.name,
        "description": spec.description,
        "input_schema": spec.input_schema,
        "output_schema": spec.output_schema,
        "permissions": list(spec.permissions),
        "owner": spec.owner,
        "version": spec.version,
        "deprecated": spec.deprecated,
        "replaced_by": spec.replaced_by,
        "cost_nano_usd": units.nano_usd(spec.cost_usd),
        "effect": spec.effect,
        "risk": spec.risk,
        "output_labels": list(spec.output_labels),
        "output_trust": dict(spec.output_trust),
        "cosmetic_args": list(spec.cosmetic_args),
        "timeout_s": spec.timeout_s,
        "retry": None
        if retry is None
        else {
            "attempts": retry.attempts,
            "wait_s": retry.wait_s,
            "max_wait_s": retry.max_wait_s,
            "jitter_s": retry.jitter_s,
            "on": [_qualified(item) for item in retry.on],
        },
        "breaker": None if breaker is None else {"failures": breaker.failures, "reset_s": breaker.reset_s},
        "concurrency": spec.concurrency,
        "fallback": spec.fallback,
        "sandbox": None
        if sandbox is None
        else {"cpu_s": sandbox.cpu_s, "memory_bytes": sandbox.memory_bytes, "network": sandbox.network},
        "credentials": list(spec.credentials),
        "idempotency_key": None if key is None else _qualified(key) if callable(key) else list(key),
        "inline": spec.inline,
        "audit": spec.audit,
        "takes_key": spec.takes_key,
        "probe": None if probe is None else _qualified(probe),
    }


def digest_of(spec: ToolSpec, probe: Callable[..., Any] | None = None) -> str:
    """SHA-256 (hex) over the canonical definition.

    Raises:
        ToolDefinitionError: AG222, a part of the definition (a schema, as a rule) is not JSON.
    """
    try:
        return canonical.digest(definition_of(spec, probe))
    except canonical.NotCanonical as error:
        raise ToolDefinitionError(f"tool {spec.name}: the definition is not JSON: {error}", code="AG222") from error
