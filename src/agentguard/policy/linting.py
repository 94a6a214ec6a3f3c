"""What is probably not meant: findings about the logic of one policy. None of them keeps it from loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentguard.canonical import dumps
from agentguard.domain.decisions import Finding
from agentguard.policy.rules import NO_CONDITIONS, Default, Rule


def lint(rules: Sequence[Rule], name: str, default: Default) -> list[Finding]:
    """Warnings about rules that cover everything, say the same twice, or can never match."""
    findings: list[Finding] = []
    seen: dict[bytes, Rule] = {}
    for rule in rules:
        form = dumps(rule.canonical(with_id=False))
        if form in seen:
            text = f"rule {rule.id} says the same as {seen[form].ref('')}"
            findings.append(rule.finding("AG302", text, severity="warning", hint="remove one of them"))
        seen.setdefault(form, rule)
        findings += _one(rule)
    if default == "deny" and not any(rule.verb in ("allow", "require_approval") for rule in rules):
        text = f"policy {name} allows nothing: every call is denied"
        findings.append(Finding("AG305", text, "warning", hint="add an allow rule, or default: abstain for a layer"))
    return findings


def _one(rule: Rule) -> Iterator[Finding]:
    everything = any(s.canonical() == {"tool": ["*"]} for s in rule.selectors)
    if rule.verb == "allow" and everything and rule.when == NO_CONDITIONS:
        text = f"rule {rule.id} allows every tool, also those registered later"
        yield rule.finding("AG301", text, severity="warning", hint="name the tools")
    for path, fragment in rule.when.args:
        where = ("when", "args", path)
        if rule.verb == "allow" and "pattern" in fragment and not _anchored(fragment["pattern"]):
            yield rule.finding(
                "AG306",
                "the pattern matches anywhere in the text",
                *where,
                key=True,
                hint="begin it with ^ and end it with $",
                severity="warning",
            )
        if _never(fragment):
            yield rule.finding("AG307", f"no value of {path} satisfies this", *where, key=True, severity="warning")
    if rule.approval is not None:
        late = [s for s in rule.approval.escalate if s.after_s >= rule.approval.expires_s]
        if late:
            text = "an escalation step comes after the approval has expired"
            yield rule.finding("AG410", text, "approval", severity="warning", hint="make expires longer")


def _anchored(pattern: str) -> bool:
    # Alternatives at the top level escape the anchors of their neighbours: ^a|b$ is anchored nowhere.
    return pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith("\\$") and not _splits(pattern)


def _splits(pattern: str) -> bool:
    depth = index = 0
    bracket = False
    while index < len(pattern):
        char = pattern[index]
        if char == "\\":
            index += 1
        elif bracket:
            bracket = char != "]"
        elif char == "[":
            bracket = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            return True
        index += 1
    return False


def _never(fragment: Mapping[str, Any]) -> bool:
    low = max((fragment[k] for k in ("minimum", "exclusiveMinimum") if k in fragment), default=None)
    high = min((fragment[k] for k in ("maximum", "exclusiveMaximum") if k in fragment), default=None)
    if low is None or high is None:
        return False
    strict = fragment.get("exclusiveMinimum") == low or fragment.get("exclusiveMaximum") == high
    return bool(low > high or (low == high and strict))
