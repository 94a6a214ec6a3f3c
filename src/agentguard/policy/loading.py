"""From a document to rules: every key known, every value of the right shape, every mistake with its place.

What must stay true: nothing in a file is ever ignored. A key is known and used, known to belong to the gateway's
part of the file, known and not supported by this version (an error), or unknown (an error with a suggestion).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from agentguard import units
from agentguard.documents import Document, Path, did_you_mean, printable
from agentguard.domain.decisions import (
    NO_OBLIGATIONS,
    ApprovalTerms,
    EscalationStep,
    Finding,
    Obligations,
)
from agentguard.domain.plans import EFFECTS, RISKS
from agentguard.errors import PolicyError
from agentguard.policy.globbing import NAME
from agentguard.policy.matchers import NotLinear, pattern_search
from agentguard.policy.recognising import HOST
from agentguard.policy.rules import FACTS, VERBS, WHO, Default, Rule, Selector, TimeWindow, Verb, When, Words

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

MAX_FINDINGS = 50
"""After this many findings a check stops looking for more."""

_OBLIGATION_KEYS = ("redact", "clamp", "rewrite", "limits")
_RULE_KEYS = ("id", "description", *VERBS, "when", "valid", "approval", "message", *_OBLIGATION_KEYS)
_LABEL_KEYS = ("any", "all", "none")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LATER_WHEN = ("after", "called", "not_called", "usage", "rates", "cel")
_LATER_KEYWORDS = (
    "from",
    "sql",
    "cel",
    "format",
    "$ref",
    "$dynamicRef",
    "$defs",
    "unevaluatedItems",
    "unevaluatedProperties",
    "dependentSchemas",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
)
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNT = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
_BOOL = ("uniqueItems", "optional")
_ONE_SCHEMA = ("not", "items", "contains", "additionalProperties", "propertyNames", "if", "then", "else")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("properties", "patternProperties")
_MATCHERS = ("within", "host", "scheme", "email_domain", "command")
KEYWORDS = (
    "const",
    "enum",
    "type",
    "pattern",
    "required",
    "dependentRequired",
    *_NUMBER,
    *_COUNT,
    *_BOOL,
    *_ONE_SCHEMA,
    *_SCHEMAS,
    *_NAMED_SCHEMAS,
    *_MATCHERS,
)
"""Keywords of argument conditions."""

TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
_NS = 1_000_000_000
_ID = re.compile(r"[A-Za-z0-9_.:/#-]{1,128}")
_SEGMENT = re.compile(r"[^.\s]{1,128}")
_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Enough(Exception):
    pass


class Reader:
    """Walks a document, collecting findings; every method answers ``None`` (or nothing) for what it refused."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.findings: list[Finding] = []

    def report(self, code: str, message: str, path: Path, *, key: bool = False, hint: str = "") -> None:
        """Record an error."""
        self.findings.append(self.document.finding(code, message, path, key=key, hint=hint))
        if len(self.findings) >= MAX_FINDINGS:
            raise _Enough

    # -- shapes --------------------------------------------------------------------------------------------------------

    def keys(
        self, value: Any, path: Path, known: Sequence[str], what: str, later: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The mapping at ``path`` with its known keys; unknown ones are reported."""
        if not isinstance(value, dict):
            self.report("AG111", f"{what} must be a mapping", path, hint=f"known keys: {', '.join(known)}")
            return {}
        good = {}
        for key, item in value.items():
            if key in known:
                good[key] = item
            elif key in later:
                self.report(
                    "AG114",
                    f"{key} is not supported by this version",
                    (*path, key),
                    key=True,
                    hint="it would not be enforced, so the file does not load",
                )
            else:
                hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
                self.report("AG110", f'unknown key "{printable(key)}" in {what}', (*path, key), key=True, hint=hint)
        return good

    def word(self, value: Any, path: Path, known: Sequence[str], what: str) -> str | None:
        """One of the known words."""
        if isinstance(value, str) and value in known:
            return value
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        self.report("AG115", f"{what} must be one of: {', '.join(known)}", path, hint=hint)
        return None

    def strings(self, value: Any, path: Path, what: str) -> list[tuple[str, Path]]:
        """A string or a list of strings, each with its path; never empty without a finding."""
        if isinstance(value, str) and value:
            return [(value, path)]
        if not isinstance(value, list) or not value:
            self.report("AG111", f"{what} must be text or a list of texts, and not empty", path)
            return []
        found = []
        for index, item in enumerate(value):
            if isinstance(item, str) and item:
                found.append((item, (*path, index)))
            else:
                self.report("AG111", f"{what} must hold texts only", (*path, index), hint="put numbers in quotes")
        return found

    def number(self, value: Any, path: Path, what: str) -> int | float | None:
        """A finite number, no truth value."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        self.report("AG117", f"{what} must be a number", path, hint="write it without quotes")
        return None

    def flag(self, value: Any, path: Path, what: str) -> bool | None:
        """``true`` or ``false``."""
        if isinstance(value, bool):
            return value
        self.report("AG111", f"{what} must be true or false", path)
        return None

    def text(self, value: Any, path: Path, what: str, limit: int) -> str:
        """A text that is not empty."""
        if isinstance(value, str) and value.strip() and len(value) <= limit:
            return value.strip()
        self.report("AG111", f"{what} must be text of 1 to {limit} characters", path)
        return ""

    def unit(self, convert: Callable[[Any], Any], value: Any, path: Path) -> Any:
        """A value with a unit; must be above zero."""
        try:
            result = convert(value)
        except ValueError as error:
            self.report("AG113", printable(str(error), 200), path)
            return None
        if result <= 0:
            self.report("AG113", "must be above zero", path)
            return None
        return result

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
        items = self.keys(value, path, _RULE_KEYS, "a rule", later=("cel", "rates"))
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

    # -- selectors -----------------------------------------------------------------------------------------------------

    def selectors(self, value: Any, path: Path) -> list[Selector]:
        """A name, a glob, a mapping of facts, or a list of these."""
        if isinstance(value, list):
            if not value:
                self.report("AG111", "the list of tools is empty", path, hint='write "*" for every tool')
            return [s for index, item in enumerate(value) if (s := self.selector(item, (*path, index)))]
        found = self.selector(value, path)
        return [found] if found else []

    def selector(self, value: Any, path: Path) -> Selector | None:
        """One alternative of a selector."""
        if isinstance(value, str):
            return Selector(tool=(value,)) if self.name(value, path) else None
        if not isinstance(value, dict):
            self.report("AG111", "a selector is a tool name, a glob or a mapping of facts", path)
            return None
        if not value:
            self.report("AG111", "the selector is empty", path, hint='write "*" for every tool')
            return None
        facts: dict[str, tuple[str, ...]] = {}
        for fact, item in self.keys(value, path, FACTS, "a selector").items():
            at = (*path, fact)
            words = self.strings(item, at, fact)
            for word, place in words:
                if fact == "tool":
                    self.name(word, place)
                elif fact == "risk":
                    self.word(word, place, RISKS, "risk")
                elif fact == "effect":
                    self.word(word, place, EFFECTS, "effect")
            facts[fact] = tuple(word for word, _ in words)
        return Selector(**facts) if facts and all(facts.values()) else None

    def name(self, value: str, path: Path) -> bool:
        """A tool name or glob."""
        if NAME.fullmatch(value):
            return True
        self.report(
            "AG120",
            f'"{printable(value)}" is no tool name or glob',
            path,
            hint="1 to 128 characters of A-Z a-z 0-9 _ . : / - and * for any run of characters",
        )
        return False

    # -- conditions ----------------------------------------------------------------------------------------------------

    def when(self, value: Any, path: Path) -> When:
        """The conditions of a rule."""
        items = self.keys(value, path, (*WHO, "time", "run", "args"), "when", later=_LATER_WHEN)
        if isinstance(value, dict) and not value:
            self.report("AG111", "when is empty", path, hint="leave it out for a rule without conditions")
        who = tuple((name, self.words(items[name], (*path, name), name)) for name in WHO if name in items)
        time = self.time(items["time"], (*path, "time")) if "time" in items else None
        labels: dict[str, tuple[str, ...]] = {}
        if "run" in items:
            run = self.keys(items["run"], (*path, "run"), ("labels",), "run", later=_LATER_WHEN)
            if "labels" in run:
                labels = self.labels(run["labels"], (*path, "run", "labels"))
            elif isinstance(items["run"], dict) and not items["run"]:
                self.report("AG111", "run is empty", (*path, "run"))
        return When(
            who=who,
            time=time,
            labels_any=labels.get("any", ()),
            labels_all=labels.get("all", ()),
            labels_none=labels.get("none", ()),
            args=self.args(items["args"], (*path, "args")) if "args" in items else (),
        )

    def words(self, value: Any, path: Path, what: str) -> Words:
        """Names or globs of who is acting; ``{not: ...}`` for everybody else."""
        negated = False
        if isinstance(value, dict):
            value = self.keys(value, path, ("not",), what).get("not")
            path, negated = (*path, "not"), True
        return Words(tuple(word for word, _ in self.strings(value, path, what)), negated)

    def labels(self, value: Any, path: Path) -> dict[str, tuple[str, ...]]:
        """Data labels of the run; a text or list means any of."""
        if not isinstance(value, dict):
            value, places = {"any": value}, {"any": path}
        else:
            places = {key: (*path, key) for key in _LABEL_KEYS}
            if not value:
                self.report("AG111", "labels is empty", path, hint="any, all or none")
            value = self.keys(value, path, _LABEL_KEYS, "labels")
        return {k: tuple(w for w, _ in self.strings(v, places[k], "labels")) for k, v in value.items()}

    def time(self, value: Any, path: Path) -> TimeWindow:
        """Hours, days and zone."""
        items = self.keys(value, path, ("between", "days", "zone"), "time")
        start, end = 0, 24 * 60
        if "between" in items:
            at = (*path, "between")
            hours = [self.clock(text, place) for text, place in self.strings(items["between"], at, "between")]
            if len(hours) != 2 or None in hours or hours[0] == hours[1] or hours[0] == 24 * 60:
                self.report("AG113", "between must be two different times of day", at, hint='["08:00", "18:00"]')
            else:
                start, end = cast("tuple[int, int]", tuple(hours))
        elif "days" not in items:
            self.report("AG111", "time needs between or days", path)
        days: tuple[int, ...] = ()
        if "days" in items:
            names = self.strings(items["days"], (*path, "days"), "days")
            days = tuple(_DAYS.index(n) for n, place in names if self.word(n, place, _DAYS, "days"))
        zone = items.get("zone", "UTC")
        try:
            if not isinstance(zone, str):
                raise ValueError
            ZoneInfo(zone)
        except Exception:  # zoneinfo raises several kinds for unknown, malformed and unreadable zones
            self.report("AG113", "zone must be the IANA name of a time zone", (*path, "zone"), hint="Europe/Berlin")
            zone = "UTC"
        return TimeWindow(start, end, days, zone)

    def clock(self, text: str, path: Path) -> int | None:
        """Minutes since midnight."""
        match = _CLOCK.fullmatch(text)
        minutes = int(match[1]) * 60 + int(match[2]) if match else 24 * 60 + 1
        if minutes <= 24 * 60:
            return minutes
        self.report("AG113", f'"{printable(text, 20)}" is no time of day', path, hint='write "08:00" to "24:00"')
        return None

    def valid(self, value: Any, path: Path) -> tuple[int | None, int | None]:
        """Start and end of validity in ns since the epoch."""
        items = self.keys(value, path, ("from", "until"), "valid")
        start = self.instant(items["from"], (*path, "from")) if "from" in items else None
        end = self.instant(items["until"], (*path, "until")) if "until" in items else None
        if not items:
            self.report("AG111", "valid needs from or until", path)
        elif start is not None and end is not None and start >= end:
            self.report("AG113", "until must be later than from", (*path, "until"))
        return start, end

    def instant(self, value: Any, path: Path) -> int | None:
        """A date or a date with time and zone, in ns since the epoch."""
        try:
            if not isinstance(value, str) or not _DATE.fullmatch(value):
                raise ValueError
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
        except (ValueError, OverflowError):
            self.report(
                "AG113", "not a date, or a time without zone", path, hint="2026-12-31 (UTC) or 2026-12-31T18:00+01:00"
            )
            return None

    # -- arguments -----------------------------------------------------------------------------------------------------

    def args(self, value: Any, path: Path) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Conditions on arguments: dotted path -> fragment."""
        if not isinstance(value, dict) or not value:
            self.report("AG111", "args must map argument paths to conditions, and not be empty", path)
            return ()
        found = []
        for name, fragment in value.items():
            at = (*path, name)
            if self.dotted(name, at, key=True):
                found.append((name, self.fragment(fragment, at, short=True)))
        return tuple(found)

    def dotted(self, name: str, path: Path, *, key: bool) -> bool:
        """A dotted path of arguments."""
        parts = name.split(".")
        if len(parts) <= 16 and all(map(_SEGMENT.fullmatch, parts)):
            return True
        self.report("AG117", f'"{printable(name)}" is no path of an argument', path, key=key, hint="items.0.sku")
        return False

    def fragment(self, value: Any, path: Path, *, short: bool = False) -> dict[str, Any]:
        """A schema fragment; with ``short`` a scalar stands for ``const`` and a list for ``enum``."""
        if short and isinstance(value, list):
            if not value:
                self.report("AG117", "the list of permitted values is empty", path)
            return {"enum": value}
        if short and not isinstance(value, dict):
            if value is None:
                self.report("AG117", "the condition is missing", path, hint="write {const: null} to ask for null")
            return {"const": value}
        items = self.keys(value, path, KEYWORDS, "a condition", later=_LATER_KEYWORDS)
        if isinstance(value, dict) and not [key for key in value if key != "optional"]:
            self.report("AG117", "the condition is empty", path)
        return {key: self.keyword(key, item, (*path, key), items) for key, item in items.items()}

    def schema(self, value: Any, path: Path) -> Any:
        """A nested fragment, or a boolean schema."""
        return value if isinstance(value, bool) else self.fragment(value, path)

    def keyword(self, key: str, value: Any, path: Path, beside: Mapping[str, Any]) -> Any:
        """The value of one keyword, checked."""
        if key in _NUMBER:
            number = self.number(value, path, key)
            if key == "multipleOf" and number is not None and number <= 0:
                self.report("AG117", "multipleOf must be above zero", path)
        elif key in _COUNT:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                self.report("AG117", f"{key} must be a whole number, 0 or more", path)
            if key in ("minContains", "maxContains") and "contains" not in beside:
                self.report("AG117", f"{key} needs contains beside it", path, key=True)
        elif key in _BOOL:
            self.flag(value, path, key)
        elif key == "enum":
            if not isinstance(value, list) or not value:
                self.report("AG117", "enum must be a list, and not empty", path)
        elif key == "type":
            for word, place in self.strings(value, path, "type"):
                self.word(word, place, TYPES, "type")
        elif key == "pattern":
            self.pattern(value, path)
        elif key == "required":
            self.strings(value, path, "required")
        elif key == "dependentRequired":
            if not isinstance(value, dict) or not value:
                self.report("AG117", "dependentRequired must map names to lists of names", path)
            else:
                for name, needs in value.items():
                    self.strings([needs] if isinstance(needs, str) else needs, (*path, name), name)
        elif key == "not":
            return value if isinstance(value, bool) else self.fragment(value, path, short=True)
        elif key in ("if", "then", "else"):
            if key != "if" and "if" not in beside:
                self.report("AG117", f"{key} needs if beside it", path, key=True)
            return self.fragment(value, path)
        elif key in _ONE_SCHEMA:
            return self.schema(value, path)
        elif key in _SCHEMAS:
            if not isinstance(value, list) or not value:
                self.report("AG117", f"{key} must be a list of conditions, and not empty", path)
                return []
            return [self.schema(item, (*path, index)) for index, item in enumerate(value)]
        elif key in _NAMED_SCHEMAS:
            if not isinstance(value, dict) or not value:
                self.report("AG117", f"{key} must map names to conditions, and not be empty", path)
                return {}
            if key == "patternProperties":
                for name in value:
                    self.pattern(name, (*path, name))
            return {name: self.schema(item, (*path, name)) for name, item in value.items()}
        elif key in _MATCHERS:
            self.matcher(key, value, path)
        return value

    def pattern(self, value: Any, path: Path) -> None:
        """A pattern that runs in linear time."""
        if not isinstance(value, str) or len(value) > 1000:
            self.report("AG116", "pattern must be text of at most 1000 characters", path)
            return
        try:
            pattern_search(value)
        except NotLinear as error:
            self.report("AG116", f"the pattern cannot be used: {error}", path)

    def matcher(self, key: str, value: Any, path: Path) -> None:
        """The operand of a matcher: a text or a list of texts."""
        if key == "command" and isinstance(value, dict):
            items = self.keys(value, path, ("allow",), "command")
            if "allow" not in items:
                self.report("AG112", "command needs allow", path, hint='{allow: [ls, "git status"]}')
                return
            value, path = items["allow"], (*path, "allow")
        for text, place in self.strings(value, path, key):
            if key == "within":
                good, hint = text.startswith("/") and not text.startswith("//"), "an absolute path such as /srv/data"
                good = good and ".." not in text.split("/") and "\\" not in text
            elif key == "scheme":
                good, hint = re.fullmatch(r"[a-z][a-z0-9+.-]*", text) is not None, "a scheme such as https"
            elif key == "command":
                good = re.fullmatch(r"[A-Za-z0-9_./+=:@%, -]+", text) is not None and bool(text.split())
                hint = "plain words such as git status"
            else:
                host = text.removeprefix("*.")
                good, hint = HOST.fullmatch(host) is not None, "a host name, or *.name for the names below it"
                good = good and not any(part.lower().startswith("xn--") for part in host.split("."))
            if not good:
                self.report("AG117", f'"{printable(text)}" does not fit {key}', place, hint=hint)

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
    reader = Reader(document)
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
    except _Enough:
        pass
    if reader.findings:
        raise PolicyError(reader.findings)
    return name, default, mode, tuple(rules)
