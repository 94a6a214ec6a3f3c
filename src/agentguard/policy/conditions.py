"""Reading the parts of a rule that say which calls it is about: selectors, ``when``, argument conditions.

What must stay true: every keyword is one that the matchers evaluate; what they cannot evaluate is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from agentguard.documents import Document, Path, printable
from agentguard.domain.plans import EFFECTS, RISKS
from agentguard.globbing import NAME
from agentguard.policy.matchers import NotLinear, literal, pattern_search
from agentguard.policy.reading import Reader
from agentguard.policy.recognising import HOST
from agentguard.policy.rules import FACTS, WHO, Selector, TimeWindow, When, Words

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

MAX_PATTERNS = 1000
"""Different patterns in one file that take long to compile (about a millisecond each)."""

# Counted repetition, Unicode classes and flags are what makes a short pattern large.
_COSTLY = re.compile(r"\{|\\[pPwWdDsS]|\(\?[a-zA-Z]")

TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
_NS = 1_000_000_000
_SEGMENT = re.compile(r"[^.\s]{1,128}")
_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:Z|[+-][0-9]{2}:[0-9]{2}))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ConditionReader(Reader):
    """Reads selectors and conditions."""

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self.patterns: set[str] = set()

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
        if literal(value) is not None:
            return
        if _COSTLY.search(value):
            self.patterns.add(value)
            if len(self.patterns) > MAX_PATTERNS:
                self.report("AG116", f"more than {MAX_PATTERNS} patterns with counts or Unicode classes", path)
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
