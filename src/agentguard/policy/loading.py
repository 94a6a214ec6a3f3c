"""From a document to rules: every key known, every value of the right shape, every mistake with its place.

What must stay true: nothing in a file is ever ignored. A key is known and used, known to belong to the gateway's
part of the file, known and not supported by this version (an error), or unknown (an error with a suggestion).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from agentguard import units
from agentguard.documents import Document, Path
from agentguard.domain.decisions import NO_OBLIGATIONS, ApprovalTerms, EscalationStep, Obligations
from agentguard.errors import PolicyError
from agentguard.policy.conditions import ConditionReader
from agentguard.policy.reading import Enough
from agentguard.policy.rules import VERBS, Default, Rule, Verb, When

POLICY_KEYS = ("version", "name", "default", "mode", "rules")
"""Top-level keys that belong to the policy."""

GATEWAY_KEYS = (
    "tools",
    "budgets",
    "rates",
    "store",
    "approvals",
    "logging",
    "architecture",
    "loops",
    "credentials",
    "sinks",
)
"""Top-level keys that belong to the gateway; of these the policy reads ``approvals.required_for`` only."""

APPROVAL_TERMS = ("roles", "quorum", "expires", "separate", "edit", "escalate")
"""Keys of ``approval`` in a rule; ``approvals`` at the top level takes them too, beside ``required_for``."""

_OBLIGATION_KEYS = ("redact", "clamp", "rewrite", "limits")
RULE_KEYS = ("id", "description", *VERBS, "when", "valid", "approval", "message", *_OBLIGATION_KEYS)
"""Keys of a rule, in the order in which the formatter writes them."""

_ID = re.compile(r"[A-Za-z0-9_.:/#-]{1,128}")


class PolicyReader(ConditionReader):
    """Reads whole rules and the settings beside them."""

    # -- the file ------------------------------------------------------------------------------------------------------

    def head(self, root: dict[str, Any]) -> tuple[str, Default, str]:
        """Name, default and mode of the policy."""
        if "version" in root and (root["version"] != 1 or isinstance(root["version"], bool)):
            self.report("AG115", "version must be 1", ("version",))
        name = "policy"
        if "name" in root:
            name = root["name"]
            if not isinstance(name, str) or not _ID.fullmatch(name):
                self.report("AG111", "name must be 1 to 128 characters of A-Z a-z 0-9 _ . : / # -", ("name",))
        default = (
            "deny"
            if "default" not in root
            else self.word(root["default"], ("default",), ("deny", "abstain"), "default")
        )
        mode = "enforce" if "mode" not in root else self.word(root["mode"], ("mode",), ("enforce", "observe"), "mode")
        return name, cast(Default, default), str(mode)

    def rules(self, value: Any) -> list[Rule]:
        """The list of rules."""
        if not isinstance(value, list):
            self.report("AG111", "rules must be a list", ("rules",), hint="each rule begins with a dash")
            return []
        found: list[Rule] = []
        lines: dict[str, int] = {}
        for index, item in enumerate(value):
            path: Path = ("rules", index)
            rule = self.rule(item, path, index)
            if rule is None:
                continue
            if rule.id in lines:
                self.report(
                    "AG118",
                    f'rule id "{rule.id}" is there twice',
                    (*path, "id"),
                    hint=f"first in line {lines[rule.id]}",
                )
            lines.setdefault(rule.id, self.document.where(path)[0])
            found.append(rule)
        return found

    def rule(self, value: Any, path: Path, index: int) -> Rule | None:
        """One rule, or ``None`` when it has no usable verb."""
        items = self.keys(value, path, RULE_KEYS, "a rule", later=("cel", "rates"))
        if not items:
            if isinstance(value, dict) and not value:
                self.report("AG112", "the rule is empty", path)
            return None
        verbs: list[Verb] = [verb for verb in VERBS if verb in items]
        if len(verbs) != 1:
            problem = "a rule needs one verb" if not verbs else f"a rule has one verb, not {' and '.join(verbs)}"
            self.report("AG112", problem, path, hint=f"one of: {', '.join(VERBS)}")
            return None
        verb = verbs[0]
        name, generated = f"{verb}#{index + 1}", True
        if "id" in items:
            generated = False
            name = items["id"]
            if not isinstance(name, str) or not _ID.fullmatch(name):
                self.report("AG111", "id must be text of A-Z a-z 0-9 _ . : / # -", (*path, "id"))
                name = f"{verb}#{index + 1}"
        if "description" in items:
            self.text(items["description"], (*path, "description"), "description", 2000)
        selectors = self.selectors(items[verb], (*path, verb))
        when = self.when(items["when"], (*path, "when")) if "when" in items else When()
        start, end = self.valid(items["valid"], (*path, "valid")) if "valid" in items else (None, None)
        if "approval" in items and verb != "require_approval":
            self.report("AG119", f"approval does not belong to {verb}", (*path, "approval"), key=True)
        terms = None
        if verb == "require_approval":
            terms = self.terms(items.get("approval", {}), (*path, "approval"))
        message = self.text(items["message"], (*path, "message"), "message", 400) if "message" in items else ""
        obligations = self.obligations(items, path, verb)
        if verb == "constrain" and obligations == NO_OBLIGATIONS and not message:
            self.report("AG112", "a constrain rule needs redact, clamp, rewrite, limits or message", path)
        return Rule(
            id=name,
            verb=verb,
            selectors=tuple(selectors),
            when=when,
            valid_from=start,
            valid_until=end,
            approval=terms,
            obligations=obligations,
            message=message,
            generated=generated,
            document=self.document,
            path=path,
        )

    def required_for(self, value: Any) -> Rule | None:
        """The short form ``approvals: {required_for: [...]}`` as a rule, if it is there."""
        path: Path = ("approvals",)
        items = self.keys(value, path, ("required_for", *APPROVAL_TERMS), "approvals")
        if "required_for" not in items:
            return None
        return Rule(
            id="approvals.required_for",
            verb="require_approval",
            selectors=tuple(self.selectors(items["required_for"], (*path, "required_for"))),
            approval=self.terms({k: v for k, v in items.items() if k != "required_for"}, path),
            generated=True,
            document=self.document,
            path=(*path, "required_for"),
        )

    # -- approvals and obligations -------------------------------------------------------------------------------------

    def terms(self, value: Any, path: Path) -> ApprovalTerms:
        """Terms of an approval, with their defaults."""
        items = self.keys(value, path, APPROVAL_TERMS, "approval")
        roles: tuple[str, ...] = ()
        if "roles" in items:
            roles = tuple(sorted({role for role, _ in self.strings(items["roles"], (*path, "roles"), "roles")}))
        quorum = items.get("quorum", 1)
        if not isinstance(quorum, int) or isinstance(quorum, bool) or not 1 <= quorum <= 100:
            self.report("AG111", "quorum must be a whole number from 1 to 100", (*path, "quorum"))
            quorum = 1
        expires = self.unit(units.seconds, items.get("expires", "1h"), (*path, "expires"))
        flags = {
            name: self.flag(items[name], (*path, name), name) if name in items else True
            for name in ("separate", "edit")
        }
        steps: list[EscalationStep] = []
        if "escalate" in items:
            ladder, at = items["escalate"], (*path, "escalate")
            if not isinstance(ladder, list) or not ladder:
                self.report("AG111", "escalate must be a list of steps", at, hint="[{after: 10m, roles: [lead]}]")
                ladder = []
            for index, item in enumerate(ladder):
                step = self.keys(item, (*at, index), ("after", "roles"), "a step")
                if len(step) == 2:
                    after = self.unit(units.seconds, step["after"], (*at, index, "after"))
                    who = self.strings(step["roles"], (*at, index, "roles"), "roles")
                    steps.append(EscalationStep(after or 0.0, tuple(sorted({role for role, _ in who}))))
                else:
                    self.report("AG112", "a step needs after and roles", (*at, index))
        return ApprovalTerms(
            role_sets=(roles,) if roles else (),
            quorum=quorum,
            expires_s=expires or 3600.0,
            separate=bool(flags["separate"]),
            edit=bool(flags["edit"]),
            escalate=tuple(sorted(steps, key=lambda s: (s.after_s, s.roles))),
        )

    def obligations(self, items: Mapping[str, Any], path: Path, verb: Verb) -> Obligations:
        """What the rule demands of the call."""
        given = [key for key in _OBLIGATION_KEYS if key in items]
        if verb == "deny":
            for key in given:
                self.report("AG119", f"{key} does not belong to deny", (*path, key), key=True, hint="use constrain")
            return NO_OBLIGATIONS
        arguments: list[str] = []
        output: list[str] = []
        for text, place in self.strings(items["redact"], (*path, "redact"), "redact") if "redact" in items else ():
            kind, _, rest = text.partition(".")
            if kind == "args" and self.dotted(rest, place, key=False):
                arguments.append(rest)
            elif text == "output" or (kind == "output" and self.dotted(rest, place, key=False)):
                output.append(rest)
            elif kind not in ("args", "output"):
                self.report("AG117", "redact takes args.<path> or output.<path>", place)
        clamps = tuple(self.clamps(items["clamp"], (*path, "clamp"))) if "clamp" in items else ()
        rewrites: list[tuple[str, Any]] = []
        if "rewrite" in items:
            for name, value in self.targets(items["rewrite"], (*path, "rewrite")):
                rewrites.append((name, value))
        limits = self.limits(items["limits"], (*path, "limits")) if "limits" in items else {}
        return Obligations(
            redact_arguments=tuple(sorted(set(arguments))),
            redact_output=tuple(sorted(set(output))),
            clamp=tuple(sorted(clamps, key=lambda pair: pair[0])),
            rewrite=tuple(sorted(rewrites, key=lambda pair: pair[0])),
            **limits,
        )

    def targets(self, value: Any, path: Path) -> list[tuple[str, Any]]:
        """Pairs of argument path and setting, from keys of the form ``args.<path>``."""
        if not isinstance(value, dict) or not value:
            self.report("AG111", "must map args.<path> to a setting, and not be empty", path)
            return []
        found = []
        for name, item in value.items():
            kind, _, rest = name.partition(".")
            if kind != "args":
                self.report("AG117", "the path must begin with args.", (*path, name), key=True)
            elif self.dotted(rest, (*path, name), key=True):
                found.append((rest, item))
        return found

    def clamps(self, value: Any, path: Path) -> list[tuple[str, tuple[Any, Any]]]:
        """Ranges that arguments are moved into."""
        found = []
        for name, item in self.targets(value, path):
            at = (*path, f"args.{name}")
            bounds = self.keys(item, at, ("minimum", "maximum"), "clamp")
            pair = [self.number(bounds[k], (*at, k), k) if k in bounds else None for k in ("minimum", "maximum")]
            if not bounds:
                self.report("AG112", "clamp needs minimum or maximum", at)
            elif pair[0] is not None and pair[1] is not None and pair[0] > pair[1]:
                self.report("AG117", "minimum is above maximum", at)
            found.append((name, (pair[0], pair[1])))
        return found

    def limits(self, value: Any, path: Path) -> dict[str, Any]:
        """Limits of the execution, as fields of :class:`Obligations`."""
        items = self.keys(value, path, ("timeout", "memory", "cpu", "network"), "limits")
        found: dict[str, Any] = {}
        if isinstance(value, dict) and not value:
            self.report("AG111", "limits is empty", path)
        if "timeout" in items:
            found["timeout_s"] = self.unit(units.seconds, items["timeout"], (*path, "timeout"))
        if "memory" in items:
            found["memory_bytes"] = self.unit(units.size, items["memory"], (*path, "memory"))
        if "cpu" in items:
            cpu = self.number(items["cpu"], (*path, "cpu"), "cpu")
            if cpu is not None and cpu <= 0:
                self.report("AG113", "cpu must be above zero", (*path, "cpu"))
            found["cpu"] = None if cpu is None else float(cpu)
        if "network" in items:
            found["network"] = self.word(items["network"], (*path, "network"), ("none",), "network")
        return found


def read(document: Document) -> tuple[str, Default, str, tuple[Rule, ...]]:
    """Read the policy of a document; sections of the gateway are left to others.

    Returns:
        Name, default, mode and rules.

    Raises:
        PolicyError: Something in the document is not what the policy language permits.
    """
    reader = PolicyReader(document)
    name: str
    default: Default
    mode: str
    name, default, mode, rules = "policy", "deny", "enforce", list[Rule]()
    try:
        known = (*POLICY_KEYS, *GATEWAY_KEYS)
        root = reader.keys(document.value, (), known, "the file")
        if "rates" in root:
            reader.report("AG114", "rates is not supported by this version", ("rates",), key=True)
        name, default, mode = reader.head(root)
        if "rules" in root:
            rules.extend(reader.rules(root["rules"]))
        if "approvals" in root:
            short = reader.required_for(root["approvals"])
            if short is not None:
                rules.append(short)
    except Enough:
        pass
    if reader.findings:
        raise PolicyError(reader.findings)
    return name, default, mode, tuple(rules)
