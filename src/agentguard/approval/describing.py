"""A request in lines of text, the same for the console and the command line.

What must stay true: everything that will run is shown and nothing is cut off; no character of an argument can move
the cursor, colour the text, reverse its direction, hide, or begin a line of its own.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.usage import COST, NANO

_ABSENT = object()


def visible(text: str) -> str:
    r"""Escape every character that is not plainly visible: ``\x1b`` for ESC, ``\u202e`` for a bidi override.

    Kept are letters, marks, digits, punctuation, symbols and the space; all other characters of the Unicode
    categories C and Z are written as escapes, and so is the backslash, to keep the two apart.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if c == "\\" or (c != " " and unicodedata.category(c)[0] in "CZ")
        else c
        for c in text
    )


def shown(value: Any) -> str:
    """One JSON value on one line, escaped as :func:`visible` does; ``1`` and ``1.0`` look different."""
    if value is _ABSENT:
        return "(absent)"
    # JSON's own escapes for quotes, backslashes and control characters come first; the rest is done char by char.
    text = json.dumps(value, ensure_ascii=False, default=lambda other: f"<{type(other).__name__}>")
    return "".join(c if c == "\\" else visible(c) for c in text)


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """What changed between two JSON values, as triples of path, old value and new value, ready to be shown.

    A value that only changed its type (``1`` to ``1.0`` or ``true``) has changed.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(k for k in after if k not in before)]:
            inner = f"{path}.{visible(str(key))}" if path else visible(str(key))
            yield from differences(before.get(key, _ABSENT), after.get(key, _ABSENT), inner)
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        for index in range(max(len(before), len(after))):
            yield from differences(
                before[index] if index < len(before) else _ABSENT,
                after[index] if index < len(after) else _ABSENT,
                f"{path}[{index}]",
            )
    elif type(before) is not type(after) or before != after:
        yield path, shown(before), shown(after)


def _amount(dimension: str, amount: int) -> str:
    if dimension == COST:
        return f"{dimension} {Decimal(amount) / NANO:f}"
    return f"{visible(dimension)} {amount}"


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // NANO, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def describe(request: ApprovalRequest) -> list[str]:
    """What an approver has to see, line by line, without any line break or control character inside a line.

    In this order: the tool and its risk, who asks, the arguments that will run, how they differ from what the
    model asked for (and, after an edit, from what was shown before), why a person is asked, what the call would
    use, who may decide until when, and the answers so far.
    """
    r = request
    runs = r.arguments if r.edited is None else r.edited
    who = f"agent {r.agent}" + (f" for {r.user}" if r.user is not None else "")
    lines = [
        f"approval {visible(r.id)} ({r.status})",
        f"tool {visible(r.tool)} (risk {visible(r.risk)}, {visible(r.effect)})",
        visible(f"{who} in tenant {r.tenant}, environment {r.environment}"),
        visible(f"run {r.run_id}, call {r.call_id}"),
        "arguments:" if runs else "arguments: none",
        *(f"  {visible(str(key))} = {shown(value)}" for key, value in runs.items()),
    ]
    if r.edited is not None:
        lines.append("an approver changed:")
        lines += [f"  {path}: {old} -> {new}" for path, old, new in differences(r.arguments, r.edited)]
    changes = list(differences(r.proposed, runs))
    if changes:
        lines.append("differs from what the model asked:")
        lines += [f"  {path}: {old} -> {new}" for path, old, new in changes]
    lines += [f"because {visible(reason)}" for reason in r.reasons]
    if r.rules:
        lines.append("rules: " + visible(", ".join(r.rules)))
    if r.budget_effect:
        lines.append("would use: " + ", ".join(_amount(*item) for item in r.budget_effect.items()))
    lines.append(_needs(r))
    for v in r.votes:
        reason = f": {v.reason}" if v.reason else ""
        lines.append(visible(f"{v.kind} by {v.by} at {_time(v.at)}{reason}"))
    return lines


def _needs(r: ApprovalRequest) -> str:
    count = max(r.terms.quorum, 1)
    roles = " and ".join(" or ".join(roles) for roles in r.terms.role_sets)
    text = f"needs {count} approver{'s' if count > 1 else ''}"
    if roles:
        text += f" ({roles})"
    if r.terms.separate:
        text += ", not the requester"
    return visible(f"{text}, until {_time(r.expires_at)}")
