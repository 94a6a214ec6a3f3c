"""Keys under which a call is remembered, and the fingerprint that tells two calls apart.

What must stay true: two different lists of parts never give the same key (each part carries its length), a key
made of a ``call_id`` never equals one made of an idempotency key, and a fingerprint changes with the JSON type
of an argument as well as with its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentguard.canonical import joined, sha256, tagged


def call_key(tenant: str, run_id: str, call_id: str) -> str:
    """Key of the call ``call_id`` of one run."""
    return joined("call", tenant, run_id, call_id)


def idempotency_call_key(tenant: str, tool: str, key: str) -> str:
    """Key of the call of ``tool`` that its idempotency key identifies across all runs of a tenant."""
    return joined("key", tenant, tool, key)


def idempotency_key_of(key: str) -> str | None:
    """The idempotency key that a call's key was made of; ``None`` for a key made of a ``call_id``."""
    parts = []
    while key:
        length, _, rest = key.partition(":")
        size = int(length)
        parts.append(rest[:size])
        key = rest[size:]
    return parts[3] if parts[0] == "key" else None


def fingerprint(tool: str, arguments: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the tool's name and the canonical arguments with their types.

    Raises:
        NotCanonical: An argument has no canonical form.
    """
    return sha256(joined("fingerprint/1", tool).encode("utf-8", "surrogatepass") + tagged(arguments))
