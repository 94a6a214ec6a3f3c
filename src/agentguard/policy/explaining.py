"""Words for decisions: what a condition demands, why a rule did or did not match, what would be allowed instead.

What must stay true: the words come from the policy alone. No text built here contains a value of the call, so a
decision can be shown to a model or written to a log whatever the arguments were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentguard.documents import printable
from agentguard.domain.decisions import ApprovalTerms
from agentguard.policy.rules import TimeWindow, Words

MESSAGE_LIMIT = 500
"""Longest text for a model, in characters."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def shown(value: Any) -> str:
    """A value of the policy, shortened."""
    if isinstance(value, str):
        return printable(value, 80)
    if isinstance(value, Mapping) and set(value) == {"allow"}:
        return shown(value["allow"])
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return printable(" or ".join(value), 120)
    return printable(json.dumps(value, ensure_ascii=False), 80)


# keyword -> (what it demands, what its opposite demands)
_PHRASES = {
    "maximum": ("at most {}", "above {}"),
    "minimum": ("at least {}", "below {}"),
    "exclusiveMaximum": ("below {}", "at least {}"),
    "exclusiveMinimum": ("above {}", "at most {}"),
    "multipleOf": ("a multiple of {}", "no multiple of {}"),
    "const": ("{}", "other than {}"),
    "type": ("of type {}", "of another type than {}"),
    "pattern": ("matching {}", "not matching {}"),
    "within": ("within {}", "outside {}"),
    "host": ("with host {}", "with another host than {}"),
    "scheme": ("with scheme {}", "with another scheme than {}"),
    "email_domain": ("an address in {}", "an address outside {}"),
    "command": ("the command {}", "another command than {}"),
    "minLength": ("at least {} characters long", "shorter than {} characters"),
    "maxLength": ("at most {} characters long", "longer than {} characters"),
    "minItems": ("with at least {} items", "with fewer than {} items"),
    "maxItems": ("with at most {} items", "with more than {} items"),
}


def demand(fragment: Mapping[str, Any], *, opposite: bool = False) -> str:
    """What a schema fragment demands of a value, in a few words; of its opposite with ``opposite``."""
    texts = []
    for keyword, operand in fragment.items():
        if keyword == "optional":
            continue
        if keyword == "not" and isinstance(operand, Mapping):
            texts.append(demand(operand, opposite=not opposite))
        elif keyword == "enum":
            options = ", ".join(map(shown, operand[:8])) + (", ..." if len(operand) > 8 else "")
            texts.append(f"{'other than' if opposite else 'one of'} {printable(options, 120)}")
        elif keyword in _PHRASES:
            texts.append(_PHRASES[keyword][opposite].format(shown(operand)))
        else:
            texts.append(f"{'not ' if opposite else ''}satisfying {keyword} {shown(operand)}")
    return (" or " if opposite else " and ").join(texts) or "anything"


def who_demand(words: Words, *, opposite: bool = False) -> str:
    """What a condition on who is acting demands."""
    text = shown(words.globs)
    return f"other than {text}" if words.negated is not opposite else text


def time_demand(window: TimeWindow) -> str:
    """What a time window demands."""
    days = f" on {', '.join(_DAYS[d] for d in window.days)}" if window.days else ""
    start, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in (window.start, window.end))
    return f"from {start} to {end}{days} ({window.zone})"


def terms_text(terms: ApprovalTerms) -> str:
    """Who may approve, in words."""
    who = " and ".join(" or ".join(roles) for roles in terms.role_sets)
    people = f"{terms.quorum} people" if terms.quorum > 1 else "a person"
    return f"approval by {people}" + (f" with role {who}" if who else "")


def model_message(verdict: str, tool: str, own: Iterable[str], unlock: Sequence[str]) -> str:
    """What the model may read about a call that does not simply run.

    Args:
        verdict: ``deny`` or ``require_approval``.
        tool: Registered name of the tool.
        own: Messages written by the authors of the rules.
        unlock: Argument changes that would be allowed.
    """
    text = " ".join(dict.fromkeys(own))
    if not text:
        text = (
            f"{tool} needs the approval of a person with these arguments."
            if verdict == "require_approval"
            else f"The policy does not allow this call of {tool}."
        )
    if unlock:
        text += f" Allowed would be: {'; or '.join(unlock)}."
    elif verdict == "deny":
        text += " Do not try it again with the same arguments."
    return printable(text, MESSAGE_LIMIT)
