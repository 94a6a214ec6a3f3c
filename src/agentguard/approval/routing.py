"""Who may answer a request, and what an answer does to it: a pure state machine.

What must stay true: a request is decided once; one rejection is final; only distinct, eligible approvers other
than the requester count; approvals count for the arguments their approver named, and an edit voids those given
for other arguments; nothing counts after the expiry. Time comes in as ``now`` (ns since the epoch, the store's
clock); nothing here reads a clock or keeps state.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from agentguard import canonical as canon
from agentguard.approval.binding import WIDE_SCOPES, grant_digest, request_digest
from agentguard.approval.text import from_json, own, to_json
from agentguard.domain.approvals import (
    ApprovalRequest,
    ApproverIdentity,
    Grant,
    GrantScope,
    Verdict,
    VerdictKind,
    Vote,
)
from agentguard.domain.decisions import ApprovalTerms
from agentguard.domain.operations import ApprovalDemand, Begin
from agentguard.domain.usage import NANO
from agentguard.errors import ApprovalError

__all__ = [
    "as_of",
    "concerns",
    "ends_at",
    "eligible_roles",
    "from_json",
    "grant_keys",
    "grants",
    "matches",
    "may_decide",
    "open_request",
    "to_json",
    "vote",
]

_SCOPES: tuple[GrantScope, ...] = get_args(GrantScope)  # in order: each reaches further than the one before
_KINDS: tuple[str, ...] = get_args(VerdictKind)

_LAST_NS = 2**63 - 1

DECIDED = "AG632"
EXPIRED = "AG633"
WRONG_ROLE = "AG634"
REQUESTER = "AG635"
TWICE = "AG636"
BAD_EDIT = "AG637"
BAD_SCOPE = "AG638"
BAD_VERDICT = "AG639"


def open_request(begin: Begin, demand: ApprovalDemand, now: int) -> ApprovalRequest:
    """Make the pending request for a call that needs approval.

    The arguments are copied, so that what is shown later is what was hashed.

    Args:
        begin: The call.
        demand: Terms and what will run.
        now: Store time, ns since the epoch.
    """
    expires_at = now + round(demand.terms.expires_s * NANO)
    budget: dict[str, int] = {}
    for dimension, amount in begin.amounts:
        budget[dimension] = budget.get(dimension, 0) + amount
    return ApprovalRequest(
        id=demand.id,
        tenant=begin.tenant,
        run_id=begin.run_id,
        call_key=begin.key,
        call_id=begin.call_id,
        tool=begin.tool,
        tool_digest=demand.tool_digest,
        arguments=own(demand.arguments),
        proposed=own(demand.proposed),
        agent=begin.agent,
        user=begin.user,
        environment=begin.environment,
        risk=demand.risk,
        effect=demand.effect,
        rules=demand.rules,
        reasons=demand.reasons,
        policy_digest=begin.policy_digest,
        budget_effect=budget,
        terms=demand.terms,
        nonce=demand.nonce,
        digest=_digest_of(begin, demand, demand.canonical, demand.nonce, expires_at),
        created_at=now,
        expires_at=expires_at,
        extra={"grants": _grant_digests(begin, demand)},
    )


def _digest_of(begin: Begin, demand: ApprovalDemand, canonical: bytes, nonce: str, not_after: int) -> str:
    return request_digest(
        tenant=begin.tenant,
        agent=begin.agent,
        user=begin.user,
        environment=begin.environment,
        run_id=begin.run_id,
        call_key=begin.key,
        tool=begin.tool,
        tool_digest=demand.tool_digest,
        canonical=canonical,
        policy_digest=begin.policy_digest,
        nonce=nonce,
        not_after=not_after,
    )


# --- time ----------------------------------------------------------------------------------------


def ends_at(request: ApprovalRequest) -> int:
    """When the request, or its unused approval, is void: ns since the epoch.

    An ``until`` approval lasts as long as its approver said; every other one ends with the request, or
    earlier when one of several approvers named an earlier time.
    """
    if request.until_ns is None:
        return request.expires_at
    return request.until_ns if request.scope == "until" else min(request.expires_at, request.until_ns)


def as_of(request: ApprovalRequest, now: int) -> ApprovalRequest:
    """The request as it stands at ``now``: pending or approved and unused past its end means ``expired``."""
    if request.status == "pending" and now >= request.expires_at:
        return replace(request, status="expired")
    if request.status == "approved" and now >= ends_at(request):
        return replace(request, status="expired")
    return request


def _when(ns: int) -> str:
    try:
        return datetime.fromtimestamp(ns // NANO, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # a year that calendars do not have
        return f"{ns} ns"


# --- who -----------------------------------------------------------------------------------------


def _same_name(one: str, other: str) -> bool:
    # "Alice" must not approve what "alice" asked for, nor count as a second person.
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _further_roles(request: ApprovalRequest, at: int) -> frozenset[str]:
    roles: set[str] = set()
    for step in request.terms.escalate:
        if at >= request.created_at + round(step.after_s * NANO):
            roles.update(step.roles)
    for entry in request.extra.get("escalated", ()):
        roles.update(entry["to"])
    return frozenset(roles)


def eligible_roles(request: ApprovalRequest, now: int) -> tuple[str, ...]:
    """Roles that may decide at ``now``, sorted; ``()`` when the request asks for no role at all.

    Rungs of the escalation ladder that are due count, and so do roles an approver escalated to.
    """
    if not request.terms.role_sets:
        return ()
    return tuple(sorted({r for roles in request.terms.role_sets for r in roles} | _further_roles(request, now)))


def may_decide(request: ApprovalRequest, by: ApproverIdentity, now: int) -> str | None:
    """Say why ``by`` may not decide the request at ``now``, or ``None`` when nothing is in the way."""
    problem = _obstacle(request, by, now)
    return problem[1] if problem else None


def _obstacle(request: ApprovalRequest, by: ApproverIdentity, now: int) -> tuple[str, str] | None:
    # Nothing but a plain, visible name may go into the record: an empty or invisible one is nobody.
    if not isinstance(by.name, str) or not by.name.strip() or not by.name.isprintable() or len(by.name) > 256:
        return (
            BAD_VERDICT,
            "the approver has no usable name; pass the ApproverIdentity of an authenticated person",
        )
    if isinstance(by.roles, str) or not all(isinstance(role, str) and role.isprintable() for role in by.roles):
        return BAD_VERDICT, f"the roles of approver {by.name} must be a tuple of strings, for example ('finance',)"
    request = as_of(request, now)
    if request.status == "expired":
        return EXPIRED, (
            f"approval {request.id} expired at {_when(ends_at(request))}; nobody can decide it any more. "
            "Call the tool again to open a new request"
        )
    if request.status != "pending":
        decider = next((v for v in reversed(request.votes) if v.kind != "escalate"), None)
        who = f" by {decider.by} at {_when(decider.at)}" if decider else ""
        return DECIDED, f"approval {request.id} is already {request.status}{who}; a decision is final"
    if request.terms.separate:
        for kind, name in (("user", request.user), ("agent", request.agent)):
            if name is not None and _same_name(by.name, name):
                return REQUESTER, (
                    f"{by.name} is the {kind} that asks for approval {request.id} and cannot decide it; "
                    "somebody else has to (separate: true)"
                )
    eligible = eligible_roles(request, now)
    if request.terms.role_sets and not set(by.roles) & set(eligible):
        return WRONG_ROLE, (
            f"{by.name} holds none of the roles that may decide approval {request.id}: {', '.join(eligible)}"
        )
    if any(v.kind == "approve" and _same_name(v.by, by.name) for v in request.votes):
        return TWICE, f"{by.name} has approved {request.id} before; it still needs somebody else"
    return None


# --- answers -------------------------------------------------------------------------------------


def vote(request: ApprovalRequest, verdict: Verdict, now: int) -> ApprovalRequest:
    """Record one answer and return the request as it then stands.

    Args:
        request: The request as stored.
        verdict: The answer. When somebody has edited the arguments before, an approval must repeat the
            edited arguments: nobody approves what they may not have seen.
        now: Store time, ns since the epoch.

    Raises:
        ApprovalError: The answer does not count. Codes: ``AG632`` decided before, ``AG633`` expired,
            ``AG634`` wrong role, ``AG635`` requester, ``AG636`` same approver twice, ``AG637`` edit not
            permitted or not agreed, ``AG638`` impossible scope, ``AG639`` unusable name or malformed answer.
    """
    by = verdict.by
    problem = _obstacle(request, by, now)
    if problem is not None:
        raise ApprovalError(problem[1], code=problem[0])
    if verdict.kind not in _KINDS:
        raise ApprovalError(
            f"{verdict.kind!r} is no answer to an approval; use one of {', '.join(_KINDS)}", code=BAD_VERDICT
        )
    if verdict.reason is not None and not isinstance(verdict.reason, str):
        raise ApprovalError(f"the reason must be text, not a {type(verdict.reason).__name__}", code=BAD_VERDICT)
    if verdict.arguments is not None and verdict.kind != "approve":
        raise ApprovalError(f"only an approval can change arguments, not {verdict.kind!r}", code=BAD_EDIT)
    roles = tuple(sorted(set(by.roles)))
    cast = Vote(by=by.name, roles=roles, kind=verdict.kind, at=now, reason=verdict.reason)
    if verdict.kind == "reject":
        return replace(request, status="rejected", votes=(*request.votes, cast), decided_at=now)
    if verdict.kind == "terminate":
        return replace(request, status="terminated", votes=(*request.votes, cast), decided_at=now)
    if verdict.kind == "escalate":
        return _escalated(request, verdict, cast, now)
    return _approved(request, verdict, cast, now)


def _escalated(request: ApprovalRequest, verdict: Verdict, cast: Vote, now: int) -> ApprovalRequest:
    to = sorted({role for role in verdict.to if isinstance(role, str) and role.strip()})
    if not to:
        raise ApprovalError(f"escalating {request.id} needs the roles to escalate to (to=...)", code=BAD_VERDICT)
    if not set(to) - _further_roles(request, now) - {r for roles in request.terms.role_sets for r in roles}:
        raise ApprovalError(f"{', '.join(to)} may decide approval {request.id} already", code=BAD_VERDICT)
    entries = [*request.extra.get("escalated", ()), {"by": cast.by, "at": now, "to": to}]
    return replace(request, votes=(*request.votes, cast), extra={**request.extra, "escalated": entries})


def _approved(request: ApprovalRequest, verdict: Verdict, cast: Vote, now: int) -> ApprovalRequest:
    _check_scope(request, verdict, now)
    request = _with_edit(request, verdict)
    first = not any(v.kind == "approve" for v in request.votes)
    scope = verdict.scope if first else _SCOPES[min(_SCOPES.index(request.scope), _SCOPES.index(verdict.scope))]
    ends = [t for t in (None if first else request.until_ns, verdict.until_ns) if t is not None]
    request = replace(request, votes=(*request.votes, cast), scope=scope, until_ns=min(ends) if ends else None)
    return replace(request, status="approved", decided_at=now) if _complete(request) else request


def _check_scope(request: ApprovalRequest, verdict: Verdict, now: int) -> None:
    if verdict.scope not in _SCOPES:
        raise ApprovalError(
            f"{verdict.scope!r} is no scope of an approval; use one of {', '.join(_SCOPES)}", code=BAD_SCOPE
        )
    if verdict.scope == "until":
        if type(verdict.until_ns) is not int:
            raise ApprovalError("scope 'until' needs until_ns, in ns since the epoch", code=BAD_SCOPE)
        if verdict.until_ns > _LAST_NS:
            raise ApprovalError("until_ns is later than any time a store can keep (2**63 - 1 ns)", code=BAD_SCOPE)
        if verdict.until_ns <= now:
            raise ApprovalError(f"until {_when(verdict.until_ns)} is in the past", code=BAD_SCOPE)
    elif verdict.until_ns is not None:
        raise ApprovalError(f"until_ns goes with scope 'until', not with {verdict.scope!r}", code=BAD_SCOPE)
    if request.edited is not None and verdict.scope != "call":
        raise ApprovalError(
            f"the arguments of {request.id} were edited, so it can only be approved for this call", code=BAD_EDIT
        )


def _with_edit(request: ApprovalRequest, verdict: Verdict) -> ApprovalRequest:
    if verdict.arguments is None:
        if request.edited is None:
            return request
        editor = next((v.by for v in request.votes if v.kind == "approve"), "somebody")
        raise ApprovalError(
            f"{editor} changed the arguments of {request.id}; to approve them too, repeat them "
            "(arguments=request.edited)",
            code=BAD_EDIT,
        )
    if not isinstance(verdict.arguments, Mapping):
        raise ApprovalError("edited arguments must be an object", code=BAD_EDIT)
    try:
        given = canon.tagged(verdict.arguments)
        same = given == canon.tagged(request.arguments)
    except canon.NotCanonical as error:
        raise ApprovalError(f"the edited arguments are no JSON values: {error}", code=BAD_EDIT) from error
    if request.edited is not None:
        if given != canon.tagged(request.edited):
            raise ApprovalError(
                f"another approver changed the arguments of {request.id} differently; approve those or reject",
                code=BAD_EDIT,
            )
        return request
    if same:
        return request
    if not request.terms.edit:
        raise ApprovalError(
            f"the policy does not let approvers change the arguments of {request.id} (edit: false)", code=BAD_EDIT
        )
    if verdict.scope != "call":
        raise ApprovalError("edited arguments can only be approved for this call (scope='call')", code=BAD_EDIT)
    # Earlier approvals were given for other arguments: they stay on record and no longer count.
    withdrawn = [
        {"by": v.by, "roles": list(v.roles), "at": v.at, "reason": v.reason}
        for v in request.votes
        if v.kind == "approve"
    ]
    extra: dict[str, Any] = {**request.extra, "edited_digest": _edited_digest(request, given)}
    if withdrawn:
        extra["withdrawn"] = withdrawn
    return replace(
        request,
        votes=tuple(v for v in request.votes if v.kind != "approve"),
        edited=own(verdict.arguments),
        extra=extra,
    )


def _edited_digest(request: ApprovalRequest, canonical: bytes) -> str:
    return request_digest(
        tenant=request.tenant,
        agent=request.agent,
        user=request.user,
        environment=request.environment,
        run_id=request.run_id,
        call_key=request.call_key,
        tool=request.tool,
        tool_digest=request.tool_digest,
        canonical=canonical,
        policy_digest=request.policy_digest,
        nonce=request.nonce,
        not_after=request.expires_at,
    )


def _complete(request: ApprovalRequest) -> bool:
    approvals = [v for v in request.votes if v.kind == "approve"]
    if len({_folded(v.by) for v in approvals}) < max(request.terms.quorum, 1):
        return False
    return all(
        any(set(v.roles) & (set(roles) | _further_roles(request, v.at)) for v in approvals)
        for roles in request.terms.role_sets
    )


# --- use -----------------------------------------------------------------------------------------


def _covers(given: ApprovalTerms, needed: ApprovalTerms) -> bool:
    """Whether what satisfies ``given`` satisfies ``needed`` too.

    The same policy can ask for more later in a run, because the run has gained labels or the hour has changed.
    """
    return given == needed or (
        given.quorum >= needed.quorum
        and given.separate >= needed.separate
        and given.edit <= needed.edit
        and given.expires_s <= needed.expires_s
        and all(any(set(have) <= set(want) for have in given.role_sets) for want in needed.role_sets)
        and all(
            any(set(rung.roles) <= set(want.roles) and rung.after_s >= want.after_s for want in needed.escalate)
            for rung in given.escalate
        )
    )


def concerns(request: ApprovalRequest, begin: Begin, demand: ApprovalDemand) -> bool:
    """Whether the request was opened for exactly this call, as it was before any edit of an approver."""
    digest = _digest_of(begin, demand, demand.canonical, request.nonce, request.expires_at)
    return digest == request.digest and _covers(request.terms, demand.terms)


def matches(request: ApprovalRequest, begin: Begin, demand: ApprovalDemand) -> bool:
    """Whether what would run now is exactly what the request, once approved, permits.

    Recomputes the digest from the call. For an approved request with edited arguments only those match, and
    then with all of them, cosmetic ones included. Status and expiry are for the caller to check.
    """
    if request.edited is None or request.status == "pending":
        return concerns(request, begin, demand)
    try:
        canonical = canon.tagged(demand.arguments)
    except canon.NotCanonical:
        return False
    digest = _digest_of(begin, demand, canonical, request.nonce, request.expires_at)
    return digest == request.extra.get("edited_digest") and _covers(request.terms, demand.terms)


def grants(request: ApprovalRequest) -> Grant | None:
    """The standing approval that an approved request with a wider scope gives, or ``None``.

    ``arguments`` and ``run`` last until the request's own expiry, ``until`` as long as the approver said.
    """
    if request.status not in ("approved", "consumed") or request.edited is not None or request.scope == "call":
        return None
    digest = request.extra.get("grants", {}).get(request.scope)
    return Grant(request.id, request.tenant, digest, ends_at(request)) if digest else None


def grant_keys(begin: Begin, demand: ApprovalDemand) -> tuple[str, ...]:
    """Digests under which a standing approval for the call may exist, narrowest scope first."""
    return tuple(_grant_digests(begin, demand).values())


def _grant_digests(begin: Begin, demand: ApprovalDemand) -> dict[str, str]:
    return {
        scope: grant_digest(
            scope,
            tenant=begin.tenant,
            agent=begin.agent,
            user=begin.user,
            environment=begin.environment,
            run_id=begin.run_id,
            tool=begin.tool,
            tool_digest=demand.tool_digest,
            canonical=demand.canonical,
            policy_digest=begin.policy_digest,
            terms=demand.terms,
        )
        for scope in WIDE_SCOPES
    }
