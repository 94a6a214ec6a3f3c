"""The digest that ties an approval to exactly what will run.

What must stay true: a digest changes with every part that decides what happens (values *and* their JSON types),
no two lists of parts share an encoding (each part carries a type tag and its length), and the absence of a
part differs from an empty one. The idea is that of "dynamic linking" in PSD2 (Regulation (EU) 2018/389,
article 5): the approval names payee and amount, and any change of them voids it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias

from agentguard import canonical as canon
from agentguard.domain.decisions import ApprovalTerms

VERSION = 1
"""Version of the encodings below; part of every digest."""

WideScope: TypeAlias = Literal["arguments", "run", "until"]
WIDE_SCOPES: tuple[WideScope, ...] = ("arguments", "run", "until")

_Part: TypeAlias = str | bytes | int | None


def _encode(domain: str, *parts: _Part) -> bytes:
    out = [f"agentguard.{domain}/{VERSION}\n".encode()]
    for part in parts:
        if part is None:
            out.append(b"n0:")
            continue
        if isinstance(part, bytes):
            tag, data = b"b", part
        elif isinstance(part, str):
            # surrogatepass: a lone surrogate must still give a digest of its own, not an exception here
            tag, data = b"s", part.encode("utf-8", "surrogatepass")
        else:
            tag, data = b"i", str(part).encode()
        out.append(tag + str(len(data)).encode() + b":" + data)
    return b"".join(out)


def canonical_arguments(arguments: Mapping[str, Any], cosmetic: Collection[str] = ()) -> bytes:
    """Encode the arguments that decide what happens, with the type of every number.

    Args:
        arguments: Effective arguments, JSON values.
        cosmetic: Names of top-level arguments that the tool declares to change nothing; left out.

    Raises:
        NotCanonical: An argument has no canonical form (NaN, a foreign type, nested too deep).
    """
    return canon.tagged({k: v for k, v in arguments.items() if k not in cosmetic} if cosmetic else arguments)


def request_digest(
    *,
    tenant: str,
    agent: str,
    user: str | None,
    environment: str,
    run_id: str,
    call_key: str,
    tool: str,
    tool_digest: str,
    canonical: bytes,
    policy_digest: str,
    nonce: str,
    not_after: int,
) -> str:
    """Digest one request (SHA-256 in hex): who asks, for which call, what would run, under which policy, until when.

    ``canonical`` are the arguments as :func:`canonical_arguments` gives them, ``not_after`` is the end of the
    request in ns since the epoch, and ``nonce`` makes two equal requests differ.
    """
    return canon.sha256(
        _encode(
            "approval.request",
            tenant,
            agent,
            user,
            environment,
            run_id,
            call_key,
            tool,
            tool_digest,
            canonical,
            policy_digest,
            nonce,
            not_after,
        )
    )


def grant_digest(
    scope: WideScope,
    *,
    tenant: str,
    agent: str,
    user: str | None,
    environment: str,
    run_id: str,
    tool: str,
    tool_digest: str,
    canonical: bytes,
    policy_digest: str,
    terms: ApprovalTerms,
) -> str:
    """Digest what a standing approval covers.

    ``arguments`` covers the same arguments in the same run, ``run`` the tool in the same run, ``until`` the
    tool in any run of the same agent and user. The terms are part of each: what one approver granted under
    lenient terms never stands in for a call that needs two.

    Returns:
        SHA-256 in hex.

    Raises:
        ValueError: The scope has no standing approval.
    """
    if scope not in WIDE_SCOPES:
        raise ValueError(f"scope {scope!r} has no standing approval; use one of {', '.join(WIDE_SCOPES)}")
    return canon.sha256(
        _encode(
            f"approval.grant.{scope}",
            tenant,
            agent,
            user,
            environment,
            tool,
            tool_digest,
            policy_digest,
            canon.tagged(terms_value(terms)),
            run_id if scope != "until" else None,
            canonical if scope == "arguments" else None,
        )
    )


def terms_value(terms: ApprovalTerms) -> dict[str, Any]:
    """The terms as a JSON value."""
    return {
        "role_sets": [list(roles) for roles in terms.role_sets],
        "quorum": terms.quorum,
        "expires_s": terms.expires_s,
        "separate": terms.separate,
        "edit": terms.edit,
        "escalate": [{"after_s": step.after_s, "roles": list(step.roles)} for step in terms.escalate],
    }
