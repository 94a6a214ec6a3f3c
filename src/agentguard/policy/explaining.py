"""Words for decisions: what a condition demands, why a rule did or did not match, what would be allowed instead.

What must stay true: the words come from the policy alone. No text built here contains a value of the call, so a
decision can be shown to a model or written to a log whatever the arguments were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from agentguard.documents import printable
from agentguard.domain.decisions import ApprovalTerms, VerdictName
from agentguard.policy.planning import Candidate, LayerVerdict, Plan, Vector
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


# -- decisions ----------------------------------------------------------------------------------------------------------


def holds(vector: Vector) -> bool:
    """Whether every condition of a rule is true."""
    return all(truth is True for truth in vector)


def because(rule: Candidate, does: str, vector: Vector) -> str:
    """What a rule does and by which conditions, and which of them are in doubt."""
    if not rule.clauses:
        return f"{rule.ref} {does}"
    doubts = [c.want for c, truth in zip(rule.clauses, vector, strict=False) if truth is None]
    text = f"{rule.ref} {does}: {' and '.join(clause.want for clause in rule.clauses)}"
    if doubts:
        text += f" (in doubt, so it applies: whether {' and '.join(doubts)} cannot be told)"
    return text


_DOES = {"deny": "denies it", "require_approval": "requires approval", "allow": "allows it"}


def said(decisive: Sequence[Candidate], matched: Mapping[Candidate, Vector]) -> list[str]:
    """One sentence per rule that decided."""
    return [because(rule, _DOES[rule.verb], matched.get(rule, ())) for rule in decisive]


def not_said(
    plan: Plan,
    verdict: VerdictName,
    verdicts: Sequence[LayerVerdict],
    grants: Mapping[Candidate, Vector],
    observed: bool,
) -> list[str]:
    """Why no layer or not every layer allows, when no rule denied."""
    if verdict != "deny":
        return []
    reasons = []
    silent = [
        index
        for index, layer in enumerate(plan.layers)
        if verdicts[index] in ("deny", "abstain") and (observed or not layer.observe)
    ]
    for index in silent:
        rules = {rule: vector for rule, vector in grants.items() if rule.layer == index}
        for rule, vector in rules.items():
            for clause, truth in zip(rule.clauses, vector, strict=True):
                if truth is False:
                    reasons.append(f"{rule.ref} would allow it, but not: {clause.want}")
                elif truth is None:
                    reasons.append(f"{rule.ref} would allow it, but cannot tell: {clause.want} (missing or odd)")
        if not rules and plan.layers[index].closed:
            reasons.append(f"no rule of {plan.layers[index].name} allows {plan.tool}; the default is deny")
    if not reasons and "deny" not in verdicts:
        reasons.append(f"no policy allows {plan.tool}")
    return reasons


Change: TypeAlias = tuple[str, bool]
"""What to do differently, and whether it is about arguments alone, so that the model may be told."""


def changes_for(
    plan: Plan,
    decisive: Sequence[Candidate],
    verdicts: Sequence[LayerVerdict],
    grants: Mapping[Candidate, Vector],
    near: Mapping[Candidate, Vector],
    observed: bool,
) -> list[Change]:
    """The smallest changes after which the call would be allowed, nearest first."""
    needed: list[str] = []
    for rule in decisive:
        flips = [clause for clause in rule.clauses if clause.kind == "args"]
        if not flips:
            return []
        needed.append(" or ".join(clause.avoid for clause in flips))
    options: list[tuple[int, Change]] = []
    missing = False
    for index, layer in enumerate(plan.layers):
        if verdicts[index] == "allow" or (layer.observe and not observed):
            continue
        rules = {r: v for r, v in (*grants.items(), *near.items()) if r.layer == index}
        if any(r.verb == "allow" and holds(v) for r, v in rules.items()):
            continue
        missing = missing or layer.closed
        for rule, vector in rules.items():
            failing = [c for c, truth in zip(rule.clauses, vector, strict=True) if truth is not True]
            text = " and ".join(clause.want for clause in failing)
            if rule.verb == "require_approval" and rule.terms:
                text += f" (with {terms_text(rule.terms)})"
            if failing and all(clause.kind != "valid" for clause in failing):
                options.append((len(failing), (text, all(clause.kind == "args" for clause in failing))))
    options.sort(key=lambda option: (option[0], option[1]))
    if not missing:
        return [(", and ".join(needed), True)] if needed else [change for _, change in options[:5]]
    denied = any(rule.verb == "deny" for rule in decisive)
    prefix = "".join(f"{text}, and " for text in needed) if denied else ""
    return list(dict.fromkeys((prefix + text, safe) for _, (text, safe) in options[:5]))
