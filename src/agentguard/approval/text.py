"""A request as JSON text, the form in which stores keep it.

What must stay true: ``from_json(to_json(request)) == request`` for every request, types of numbers included,
and text that is not exactly such a form raises instead of becoming a request with guessed parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from agentguard.approval.binding import terms_value
from agentguard.domain.approvals import ApprovalRequest, ApprovalStatus, GrantScope, VerdictKind, Vote
from agentguard.domain.decisions import ApprovalTerms, EscalationStep
from agentguard.errors import StoreError

_NAMES = frozenset(f.name for f in fields(ApprovalRequest))
_TERMS = frozenset(f.name for f in fields(ApprovalTerms))
_STATUSES: tuple[str, ...] = get_args(ApprovalStatus)
_SCOPES: tuple[str, ...] = get_args(GrantScope)
_KINDS: tuple[str, ...] = get_args(VerdictKind)

_TEXTS = (
    "id",
    "tenant",
    "run_id",
    "call_key",
    "call_id",
    "tool",
    "tool_digest",
    "agent",
    "environment",
    "risk",
    "effect",
    "policy_digest",
    "nonce",
    "digest",
)


def own(value: Any) -> Any:
    """Copy a JSON value deeply into plain dicts and lists, so that nobody else can change it later.

    Raises:
        TypeError: A key is no string.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("object keys must be strings")
        return {key: own(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [own(item) for item in value]
    return value


def to_json(request: ApprovalRequest) -> str:
    """Write a request as JSON text.

    Raises:
        ValueError: A value in it is no JSON value.
    """
    value: dict[str, Any] = {name: getattr(request, name) for name in sorted(_NAMES)}
    value["terms"] = terms_value(request.terms)
    value["votes"] = [
        {"by": v.by, "roles": list(v.roles), "kind": v.kind, "at": v.at, "reason": v.reason} for v in request.votes
    ]
    try:
        return json.dumps(own(value), allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"approval {request.id} holds something that is no JSON value: {error}") from error


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    _need(type(value) is list and all(type(item) is str for item in value), f"{what} is no list of strings")
    return tuple(value)


def _whole(value: Any, what: str) -> int:
    _need(type(value) is int, f"{what} is no integer")
    return int(value)


def _seconds(value: Any, what: str) -> float:
    _need(type(value) in (int, float) and value >= 0, f"{what} is no number of seconds")
    return value  # type: ignore[no-any-return]  # 30 stays 30 and 30.0 stays 30.0


def _object(value: Any, what: str, keys: frozenset[str] | None = None) -> dict[str, Any]:
    _need(type(value) is dict, f"{what} is no object")
    if keys is not None and value.keys() != keys:
        raise ValueError(f"{what} has other fields than {', '.join(sorted(keys))}")
    return dict(value)


def _terms(value: Any) -> ApprovalTerms:
    v = _object(value, "terms", _TERMS)
    _need(type(v["role_sets"]) is list and type(v["escalate"]) is list, "role_sets or escalate is no list")
    _need(type(v["separate"]) is bool and type(v["edit"]) is bool, "separate or edit is no boolean")
    steps = [_object(step, "escalate", frozenset({"after_s", "roles"})) for step in v["escalate"]]
    return ApprovalTerms(
        role_sets=tuple(_texts(roles, "role_sets") for roles in v["role_sets"]),
        quorum=_whole(v["quorum"], "quorum"),
        expires_s=_seconds(v["expires_s"], "expires_s"),
        separate=v["separate"],
        edit=v["edit"],
        escalate=tuple(
            EscalationStep(_seconds(step["after_s"], "after_s"), _texts(step["roles"], "roles")) for step in steps
        ),
    )


def _vote(value: Any) -> Vote:
    v = _object(value, "vote", frozenset({"by", "roles", "kind", "at", "reason"}))
    _need(type(v["by"]) is str and v["kind"] in _KINDS, "vote has no voter or an unknown kind")
    _need(v["reason"] is None or type(v["reason"]) is str, "reason is no string")
    return Vote(v["by"], _texts(v["roles"], "roles"), v["kind"], _whole(v["at"], "at"), v["reason"])


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def from_json(text: str) -> ApprovalRequest:
    """Read a request that :func:`to_json` wrote.

    Raises:
        StoreError: The text is not exactly such a request.
    """
    try:
        v = _object(json.loads(text, parse_constant=_refuse_constant), "request", _NAMES)
        for name in _TEXTS:
            _need(type(v[name]) is str, f"{name} is no string")
        _need(v["user"] is None or type(v["user"]) is str, "user is no string")
        _need(v["status"] in _STATUSES and v["scope"] in _SCOPES, "status or scope is unknown")
        for name in ("created_at", "expires_at"):
            _whole(v[name], name)
        for name in ("until_ns", "decided_at"):
            _need(v[name] is None or type(v[name]) is int, f"{name} is no integer")
        for name in ("arguments", "proposed", "extra"):
            _object(v[name], name)
        _need(v["edited"] is None or type(v["edited"]) is dict, "edited is no object")
        budget = _object(v["budget_effect"], "budget_effect")
        v["budget_effect"] = {name: _whole(amount, "budget_effect") for name, amount in budget.items()}
        v["rules"] = _texts(v["rules"], "rules")
        v["reasons"] = _texts(v["reasons"], "reasons")
        v["terms"] = _terms(v["terms"])
        _need(type(v["votes"]) is list, "votes is no list")
        v["votes"] = tuple(_vote(vote) for vote in v["votes"])
        return ApprovalRequest(**v)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"the store holds an approval request that cannot be read ({error}); it grants nothing") from (
            error
        )
