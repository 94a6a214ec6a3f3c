"""The nouns of the policy language: a rule, what it selects, when it applies, what it demands.

Plain frozen values without behaviour beyond their canonical form. What must stay true: the canonical form holds
everything that can change a decision and nothing else, so that two files with the same meaning have one digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from agentguard.canonical import dumps
from agentguard.documents import Document, Path
from agentguard.domain.decisions import (
    NO_OBLIGATIONS,
    ApprovalTerms,
    Finding,
    Obligations,
    RuleRef,
)

Verb: TypeAlias = Literal["allow", "deny", "require_approval", "constrain"]
VERBS: tuple[Verb, ...] = ("allow", "deny", "require_approval", "constrain")

Default: TypeAlias = Literal["deny", "abstain"]

FACTS = ("tool", "permission", "risk", "effect", "owner", "label")
"""Registry facts that a selector may ask for."""

WHO = ("agent", "user", "role", "tenant", "environment", "session", "team")
"""Facts about the run that a condition may ask for."""


@dataclass(frozen=True, slots=True)
class Selector:
    """One description of tools: every field that is set must match, and a field matches on any of its globs.

    Attributes:
        tool: Names or globs of tools.
        permission: Globs of permissions, one of which the tool requires.
        risk: Risk tiers.
        effect: Effect classes.
        owner: Globs of owners.
        label: Globs of labels, one of which the tool's output carries.
    """

    tool: tuple[str, ...] = ()
    permission: tuple[str, ...] = ()
    risk: tuple[str, ...] = ()
    effect: tuple[str, ...] = ()
    owner: tuple[str, ...] = ()
    label: tuple[str, ...] = ()

    def canonical(self) -> dict[str, list[str]]:
        """JSON form with the fields that are set, sorted."""
        return {name: sorted(set(getattr(self, name))) for name in FACTS if getattr(self, name)}


@dataclass(frozen=True, slots=True)
class Words:
    """A condition on one fact of the run: one of ``globs``, or none of them when ``negated``."""

    globs: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Hours of the day on some days of the week.

    Attributes:
        start: First minute of the window, counted from midnight.
        end: First minute after it; not above ``start`` for a window that goes past midnight.
        days: Days on which the window begins, Monday is 0; empty for every day.
        zone: IANA name of the time zone.
    """

    start: int = 0
    end: int = 24 * 60
    days: tuple[int, ...] = ()
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of a rule; all of them are required.

    Attributes:
        who: Conditions on facts of the run, in the order of :data:`WHO`.
        time: Hours and days.
        labels_any: At least one of these data labels is on the run.
        labels_all: All of these are.
        labels_none: None of these is.
        args: Pairs of dotted argument path and schema fragment.
    """

    who: tuple[tuple[str, Words], ...] = ()
    time: TimeWindow | None = None
    labels_any: tuple[str, ...] = ()
    labels_all: tuple[str, ...] = ()
    labels_none: tuple[str, ...] = ()
    args: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @property
    def labels(self) -> bool:
        """Whether any condition looks at the labels of the run."""
        return bool(self.labels_any or self.labels_all or self.labels_none)

    def canonical(self) -> dict[str, Any]:
        """JSON form with what is set."""
        form: dict[str, Any] = {
            name: {"not" if words.negated else "any": sorted(set(words.globs))} for name, words in self.who
        }
        if self.time is not None:
            form["time"] = [self.time.start, self.time.end, sorted(set(self.time.days)), self.time.zone]
        for name in ("labels_any", "labels_all", "labels_none"):
            if getattr(self, name):
                form[name] = sorted(set(getattr(self, name)))
        if self.args:
            form["args"] = {path: canonical_fragment(fragment) for path, fragment in self.args}
        return form


NO_CONDITIONS = When()


def canonical_fragment(value: Any) -> Any:
    """JSON form of a schema fragment: the order of alternatives does not matter and is lost."""
    if isinstance(value, Mapping):
        return {
            key: sorted(map(canonical_fragment, item), key=dumps)
            if key in ("enum", "required", "allOf", "anyOf", "oneOf", "type") and isinstance(item, list)
            else canonical_fragment(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [canonical_fragment(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy.

    Attributes:
        id: Its name in decisions, records and messages.
        verb: ``allow``, ``deny``, ``require_approval`` or ``constrain``.
        selectors: Which tools; any of them.
        when: Under which conditions.
        valid_from: Start of validity in ns since the epoch, or ``None``.
        valid_until: End of validity (exclusive) in ns since the epoch, or ``None``.
        approval: Terms, for ``require_approval``.
        obligations: What must be done along with the call.
        message: What the model is told when the rule decides.
        generated: The file gave no id.
        document: Where the rule was written, for findings.
        path: Place of the rule in ``document``.
    """

    id: str
    verb: Verb
    selectors: tuple[Selector, ...]
    when: When = NO_CONDITIONS
    valid_from: int | None = None
    valid_until: int | None = None
    approval: ApprovalTerms | None = None
    obligations: Obligations = NO_OBLIGATIONS
    message: str = ""
    generated: bool = False
    document: Document | None = field(default=None, repr=False, compare=False)
    path: Path = field(default=(), repr=False, compare=False)

    def ref(self, layer: str) -> RuleRef:
        """Reference for decisions."""
        if self.document is None:
            return RuleRef(self.id, None, None, self.verb, layer)
        return RuleRef(self.id, self.document.source, self.document.where(self.path)[0], self.verb, layer)

    def finding(
        self,
        code: str,
        message: str,
        *where: str | int,
        key: bool = False,
        hint: str = "",
        severity: Literal["error", "warning", "info"] = "error",
    ) -> Finding:
        """Describe something wrong in this rule; ``where`` leads from the rule to the place."""
        if self.document is None:
            return Finding(code, f"rule {self.id}: {message}", severity, hint=hint)
        return self.document.finding(code, message, (*self.path, *where), key=key, hint=hint, severity=severity)

    def canonical(self, *, with_id: bool = True) -> dict[str, Any]:
        """JSON form of the meaning: no layout, no comments, no generated id."""
        form: dict[str, Any] = {
            "verb": self.verb,
            "tools": sorted({dumps(s.canonical()).decode() for s in self.selectors}),
        }
        if with_id and not self.generated:
            form["id"] = self.id
        when = self.when.canonical()
        if when:
            form["when"] = when
        if self.valid_from is not None or self.valid_until is not None:
            form["valid"] = [str(self.valid_from), str(self.valid_until)]
        if self.approval is not None:
            form["approval"] = _plain(self.approval)
        if self.obligations != NO_OBLIGATIONS:
            form["obligations"] = _plain(self.obligations)
        if self.message:
            form["message"] = self.message
        return form


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
