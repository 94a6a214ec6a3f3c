"""Policy cases: calls, and what a policy must say about them, read from YAML files.

The same form serves ``agentguard test``, the pytest plugin and the project's own tests. What must stay true: a case
that is misspelt is an error with its place, never a case that passes; the time of a case is part of the case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from agentguard.documents import Document, printable
from agentguard.documents import Path as Place
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision, RuleRef
from agentguard.domain.plans import EFFECTS, RISKS, ToolSpec
from agentguard.errors import ConfigurationError, PolicyError
from agentguard.naming import check_id
from agentguard.policy.policies import Policy
from agentguard.policy.reading import Enough, Reader

VERDICTS: Final = ("allow", "deny", "require_approval", "invalid")
"""Answers a case may expect; ``invalid`` is a call whose arguments do not fit the tool's schema."""

NOON: Final = "2026-01-01T12:00:00+00:00"
"""The time of a case that names none (a Thursday), so that a case says the same every day."""

SUITE_KEYS: Final = ("policy", "file", "cases")
FILE_KEYS: Final = ("tools", "groups", *SUITE_KEYS)
CASE_KEYS: Final = (
    *("say", "tool", "args", "context", "labels", "now", "registered"),
    *("verdict", "rules", "mode", "reasons", "unlock", "message"),
)
CONTEXT_KEYS: Final = ("agent", "tenant", "environment", "user", "roles", "session", "team", "scope", "labels", "task")
TOOL_KEYS: Final = ("schema", "permissions", "effect", "risk", "owner", "labels")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Case:
    """One call, and what must come of it.

    Attributes:
        say: The case in one sentence.
        tool: Name of the tool.
        arguments: Arguments of the call.
        context: Who is acting.
        labels: Data labels the run has gained.
        now_ns: Time of the call in ns since the epoch.
        verdict: One of :data:`VERDICTS`.
        rules: Ids of the rules that decide, or ``None`` when the case does not say.
        mode: ``enforce`` or ``observe``, or ``None``.
        reasons: Texts that must appear among the reasons.
        unlock: Texts that must appear in what would be allowed instead.
        message: Texts that must appear in what the model is told.
        registered: ``False`` for a case about a tool that does not exist.
        line: Line of the case in its file.
    """

    say: str
    tool: str
    arguments: Mapping[str, Any]
    context: RunContext
    labels: tuple[str, ...]
    now_ns: int
    verdict: str
    rules: tuple[str, ...] | None
    mode: str | None
    reasons: tuple[str, ...]
    unlock: tuple[str, ...]
    message: tuple[str, ...]
    registered: bool
    line: int

    def problems(self, decision: Decision | None) -> list[str]:
        """What is otherwise than the case says; empty when it holds.

        Args:
            decision: The policy's answer, or ``None`` when the arguments did not fit the tool's schema.
        """
        verdict = "invalid" if decision is None else decision.verdict
        if verdict != self.verdict:
            found = [f"the verdict is {verdict}, not {self.verdict}"]
            return found + ([] if decision is None else [f"because {reason}" for reason in decision.reasons])
        if decision is None:
            return []
        problems: list[str] = []
        ids = [rule.id for rule in decision.rules]
        if self.rules is not None and sorted(ids) != sorted(self.rules):
            problems.append(f"the rules are {_listed(ids)}, not {_listed(self.rules)}")
        if self.mode is not None and decision.mode != self.mode:
            problems.append(f"the mode is {decision.mode}, not {self.mode}")
        for what, wanted, texts in (
            ("reason", self.reasons, decision.reasons),
            ("way out", self.unlock, decision.unlock),
            ("message to the model", self.message, (decision.message,)),
        ):
            for text in wanted:
                if not any(text in one for one in texts):
                    shown = "; ".join(texts) or "nothing"
                    problems.append(f'no {what} contains "{printable(text)}": {shown}')
        return problems


def _listed(words: Iterable[str]) -> str:
    return f"[{', '.join(sorted(words))}]"


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases about one policy.

    Attributes:
        layers: The policy, or its layers, outermost first.
        cases: What is asked of it.
        source: File of the cases.
        described: Tools that the file describes, or ``None``.
        named: Where the tools are, as ``module:attribute``, or ``None``.
        documents: Files of the policy, whose ``tools:`` sections complete the tools.
    """

    layers: tuple[Policy, ...]
    cases: tuple[Case, ...]
    source: str
    described: tuple[Described, ...] | None
    named: str | None
    documents: tuple[Document, ...]

    def untouched(self, decisions: Iterable[Decision]) -> list[RuleRef]:
        """Rules that none of these decisions mentions, in file order."""
        named: set[RuleRef] = set()
        said: set[str] = set()
        for decision in decisions:
            named.update(decision.rules)
            said.update(decision.reasons)
        return [ref for ref in self.rules() if ref not in named and not _mentioned(ref, said)]

    def rules(self) -> Iterator[RuleRef]:
        """Every rule of every layer."""
        for layer in self.layers:
            for rule in layer.rules:
                yield rule.ref(layer.name)


def _mentioned(ref: RuleRef, reasons: Collection[str]) -> bool:
    """Whether a rule added obligations or was heard in observe mode: those are named in the reasons only."""
    return any(reason.startswith((f"{ref} adds obligations", f"{ref} observes only")) for reason in reasons)


@dataclass(frozen=True, slots=True)
class Described:
    """A tool that is known by its facts only."""

    spec: ToolSpec


class DescribedTools:
    """The tools that a case file describes: enough to check and decide, nothing to run."""

    def __init__(self, tools: Iterable[Described]) -> None:
        self._tools = {tool.spec.name: tool for tool in tools}

    def __iter__(self) -> Iterator[Described]:
        return iter(self._tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tools


def read_cases(document: Document, folder: Path) -> tuple[Suite, ...]:
    """Read a case file.

    Args:
        document: The parsed file.
        folder: Folder of the file; policies are looked for from there.

    Raises:
        PolicyError: The cases, or a policy they name, cannot be read; carries every finding.
    """
    reader = _CaseReader(document, folder)
    suites: tuple[Suite, ...] = ()
    try:
        suites = reader.file()
    except Enough:
        pass
    if reader.findings:
        raise PolicyError(reader.findings)
    return suites


class _CaseReader(Reader):
    """Walks a case file."""

    def __init__(self, document: Document, folder: Path) -> None:
        super().__init__(document)
        self.folder = folder
        self.described: tuple[Described, ...] | None = None
        self.named: str | None = None

    def file(self) -> tuple[Suite, ...]:
        """All suites of the file."""
        root = self.keys(self.document.value, (), FILE_KEYS, "the file")
        if "tools" in root:
            self.tools(root["tools"])
        if "groups" not in root:
            return tuple(filter(None, [self.suite({k: v for k, v in root.items() if k != "tools"}, ())]))
        for key in SUITE_KEYS:
            if key in root:
                self.report("AG119", f"{key} belongs into the groups when there are groups", (key,), key=True)
        groups = root["groups"]
        if not isinstance(groups, list) or not groups:
            self.report("AG111", "groups must be a list of policies with their cases, and not be empty", ("groups",))
            return ()
        found = []
        for index, group in enumerate(groups):
            known = self.keys(group, ("groups", index), SUITE_KEYS, "a group")
            found.append(self.suite(known, ("groups", index)))
        return tuple(filter(None, found))

    # -- tools ---------------------------------------------------------------------------------------------------------

    def tools(self, value: Any) -> None:
        """Tools by their facts, or where they are in Python."""
        if isinstance(value, str) and value.strip(":") and ":" in value:
            self.named = value
            return
        if not isinstance(value, dict) or not value:
            hint = "module:attribute, or a mapping from tool name to its facts"
            self.report("AG111", "tools must say where the tools are, or describe them", ("tools",), hint=hint)
            return
        self.described = tuple(Described(self.spec(name, entry)) for name, entry in value.items())

    def spec(self, name: str, value: Any) -> ToolSpec:
        """One described tool."""
        path: Place = ("tools", name)
        entry = self.keys(value, path, TOOL_KEYS, "a tool") if value is not None else {}
        words: dict[str, Any] = {}
        for key, field in (("permissions", "permissions"), ("labels", "output_labels")):
            if key in entry:
                words[field] = tuple(text for text, _ in self.strings(entry[key], (*path, key), key))
        for key, known in (("effect", EFFECTS), ("risk", RISKS)):
            if key in entry:
                words[key] = self.word(entry[key], (*path, key), known, key)
        if "owner" in entry:
            words["owner"] = self.text(entry["owner"], (*path, "owner"), "owner", 256)
        schema = entry.get("schema", {"type": "object"})
        if not isinstance(schema, dict):
            self.report("AG111", "schema must be a JSON Schema, as a mapping", (*path, "schema"))
            schema = {}
        return ToolSpec(name, "", schema, **words)

    # -- policies ------------------------------------------------------------------------------------------------------

    def suite(self, items: Mapping[str, Any], path: Place) -> Suite | None:
        """A policy with its cases."""
        layers, documents = self.policies(items, path)
        cases = items.get("cases")
        if not isinstance(cases, list) or not cases:
            self.report("AG112", "there must be a list of cases, and not an empty one", (*path, "cases"))
            return None
        found = [self.case(case, (*path, "cases", index)) for index, case in enumerate(cases)]
        known = {rule.id for layer in layers for rule in layer.rules}
        for index, one in enumerate(found):
            for name in (one.rules or ()) if one is not None and layers else ():
                if name not in known:
                    self.report("AG115", f'no rule is called "{printable(name)}"', (*path, "cases", index, "rules"))
        if not layers:
            return None
        good = tuple(case for case in found if case is not None)
        return Suite(layers, good, self.document.source, self.described, self.named, documents)

    def policies(self, items: Mapping[str, Any], path: Place) -> tuple[tuple[Policy, ...], tuple[Document, ...]]:
        """The policy of a suite: a text, a file, or several files as layers."""
        from agentguard.documents import load, load_file

        if ("policy" in items) is ("file" in items):
            self.report("AG112", "name the policy: either policy with its text, or file with its path", path)
            return (), ()
        documents: list[Document] = []
        layers: list[Policy] = []
        try:
            if "policy" in items:
                at = (*path, "policy")
                text = items["policy"]
                if not isinstance(text, str):
                    self.report("AG111", "policy must be the text of a policy", at, hint="begin it with: policy: |")
                    return (), ()
                line = self.document.where(at)[0]
                documents.append(load(text, f"policy in {self.document.source}:{line}"))
            else:
                for name, _ in self.strings(items["file"], (*path, "file"), "file"):
                    documents.append(load_file(self.folder / name))
            layers = [Policy.from_document(document) for document in documents]
        except PolicyError as error:
            self.findings.extend(error.findings)
        return tuple(layers), tuple(documents)

    # -- cases ---------------------------------------------------------------------------------------------------------

    def case(self, value: Any, path: Place) -> Case | None:
        """One case."""
        before = len(self.findings)
        items = self.keys(value, path, CASE_KEYS, "a case")
        for key in ("tool", "verdict"):
            if items and key not in items:
                self.report("AG112", f"a case needs {key}", path)
        if not items or "tool" not in items or "verdict" not in items:
            return None
        tool = self.text(items["tool"], (*path, "tool"), "tool", 128)
        verdict = self.word(items["verdict"], (*path, "verdict"), VERDICTS, "verdict")
        arguments = items.get("args", {})
        if not isinstance(arguments, dict):
            self.report("AG111", "args must map argument names to values", (*path, "args"))
        rules: tuple[str, ...] | None = None
        if "rules" in items:
            empty = items["rules"] == []
            rules = () if empty else self.words(items["rules"], (*path, "rules"), "rules")
        mode = None
        if "mode" in items:
            mode = self.word(items["mode"], (*path, "mode"), ("enforce", "observe"), "mode")
        registered = True
        if "registered" in items:
            registered = bool(self.flag(items["registered"], (*path, "registered"), "registered"))
        texts = {
            key: self.words(items[key], (*path, key), key) if key in items else ()
            for key in ("reasons", "unlock", "message", "labels")
        }
        say = self.text(items["say"], (*path, "say"), "say", 400) if "say" in items else f"{tool} is {verdict}"
        context = self.context(items.get("context", {}), (*path, "context"))
        now = self.now(items.get("now", NOON), (*path, "now"))
        if len(self.findings) > before or context is None or verdict is None:
            return None
        return Case(
            say=say,
            tool=tool,
            arguments=arguments,
            context=context,
            now_ns=now,
            verdict=verdict,
            rules=rules,
            mode=mode,
            registered=registered,
            line=self.document.where(path)[0],
            **texts,
        )

    def words(self, value: Any, path: Place, what: str) -> tuple[str, ...]:
        """A text or a list of texts."""
        return tuple(text for text, _ in self.strings(value, path, what))

    def now(self, value: Any, path: Place) -> int:
        """A time with its zone, in ns since the epoch."""
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError
            return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
        except (TypeError, ValueError, OverflowError):
            self.report("AG113", "now must be a time with zone", path, hint="2026-01-01T12:00:00+00:00")
            return 0

    def context(self, value: Any, path: Place) -> RunContext | None:
        """Who is acting."""
        before = len(self.findings)
        items = self.keys(value, path, CONTEXT_KEYS, "context")
        facts: dict[str, Any] = {"run_id": "case", "agent": "agent"}
        for key, item in items.items():
            at = (*path, key)
            if key == "scope":
                facts[key] = self.scope(item, at)
            elif key == "task":
                facts[key] = self.text(item, at, key, 10_000)
            elif key in ("roles", "labels"):
                words = () if item == [] else self.words(item, at, key)
                facts[key] = tuple(sorted({self.name(key, word, at) for word in words}))
            else:
                facts[key] = self.name(key, item, at)
        return RunContext(**facts) if len(self.findings) == before else None

    def name(self, kind: str, value: Any, path: Place) -> str:
        """An id as runs take it."""
        try:
            return check_id(kind, value)
        except ConfigurationError as error:
            self.report("AG111", str(error).removeprefix(f"{error.code} "), path)
            return "-"  # stands in, so that the other findings of the file are made too

    def scope(self, value: Any, path: Place) -> tuple[tuple[str, ...], ...]:
        """One narrowing (a list of names and globs) or several (a list of lists)."""
        if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
            return tuple(self.words(item, (*path, index), "scope") for index, item in enumerate(value))
        return (self.words(value, path, "scope"),)


def chosen(cases: Sequence[Case], pattern: str) -> list[Case]:
    """The cases whose sentence or tool contains ``pattern``, capitals or not."""
    wanted = pattern.casefold()
    return [case for case in cases if wanted in case.say.casefold() or wanted in case.tool.casefold()]
