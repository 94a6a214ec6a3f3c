"""``agentguard.yaml`` as values: the policy and the gateway's settings, each checked with its place in the file.

What must stay true: a key that is not known, a value that cannot be read or a limit that is none is an error
with file, line and column. A setting is never skipped because it was not understood.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from agentguard.audit.sinks import JsonlSink
from agentguard.budget.budget import Budget, merged
from agentguard.documents import Document, did_you_mean, load, load_file
from agentguard.domain.decisions import Finding
from agentguard.errors import ConfigurationError, PolicyError, SinkError
from agentguard.policy.policies import Policy
from agentguard.protocols import CredentialProvider, Sink
from agentguard.resilience.credentials import EnvCredentials

_BUDGET_KEYS: Final = (
    "scope",
    "per",
    "match",
    "warn_at",
    "max_steps",
    "max_tool_calls",
    "max_tokens",
    "max_input_tokens",
    "max_output_tokens",
    "max_cost_usd",
    "max_seconds",
    "max_working_seconds",
    "max_repeats",
    "per_tool",
    "counters",
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_FIRST_WORD: Final = re.compile(r"\w+")
_ARCHITECTURE: Final[Mapping[str, tuple[str, ...]]] = {
    "tool_gateway": ("owned",),
    "runtime": ("managed_or_custom", "managed", "custom"),
}


class ToolNames(Protocol):
    """The names of the registered tools."""

    def __contains__(self, name: object, /) -> bool:
        """Whether a tool of that name is registered."""
        ...

    def did_you_mean(self, name: str) -> str:
        """A hint at the name that was probably meant."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration file says.

    Attributes:
        document: The file itself, for sections that need the registry (``tools``).
        policy: The policy in it.
        budgets: Budgets, one per scope, window and match.
        store: Store URL, or ``None`` when the file names none.
        has_tools: The file has a ``tools`` section.
        max_repeats: Loop limit; ``None`` switches loop detection off.
        loops_set: The file says something about loops.
        sinks: Files of audit sinks, and whether each is required; :func:`open_sinks` opens them.
        credentials: Credential provider, or ``None``.
        log_calls: Whether tool calls are logged.
        log_stop_reasons: Whether refusals and stop reasons are logged.
        architecture: The documented architecture, as written.
    """

    document: Document
    policy: Policy
    budgets: tuple[Budget, ...] = ()
    store: str | None = None
    has_tools: bool = False
    max_repeats: int | None = None
    loops_set: bool = False
    sinks: tuple[tuple[Path, bool], ...] = ()
    credentials: CredentialProvider | None = None
    log_calls: bool = True
    log_stop_reasons: bool = True
    architecture: Mapping[str, str] | None = None


def read(path: str | os.PathLike[str]) -> Settings:
    """Read a configuration file.

    Raises:
        PolicyError: The file is missing, unreadable or wrong; carries every finding.
    """
    return settings_of(load_file(path), Path(path).parent)


def read_text(text: str, source: str = "<string>") -> Settings:
    """The same from a text.

    Raises:
        PolicyError: The text is wrong; carries every finding.
    """
    return settings_of(load(text, source), Path())


def settings_of(document: Document, folder: Path) -> Settings:
    """Everything a document says except what needs the registered tools.

    Args:
        document: The parsed file.
        folder: Folder of the file; relative paths of sinks start there.

    Raises:
        PolicyError: Something is wrong; carries every finding.
    """
    findings: list[Finding] = []
    policy: Policy | None = None
    try:
        policy = Policy.from_document(document)
    except PolicyError as error:
        findings += error.findings
    value: Any = document.value
    if not isinstance(value, Mapping):
        raise PolicyError(findings)
    reader = _Reader(document, findings)
    budgets = _budgets(reader, value)
    store = value.get("store")
    if "store" in value and (not isinstance(store, str) or not store):
        reader.wrong("AG111", 'store must be a URL such as "sqlite:///agentguard.db"', ("store",))
    loops, has_loops = _loops(reader, value)
    sinks = _sinks(reader, value, folder)
    credentials = _credentials(reader, value)
    calls, reasons = _logging(reader, value)
    architecture = _architecture(reader, value)
    if findings or policy is None:
        raise PolicyError(findings)
    return Settings(
        document=document,
        policy=policy,
        budgets=budgets,
        store=store,
        has_tools="tools" in value,
        max_repeats=loops,
        loops_set=has_loops,
        sinks=sinks,
        credentials=credentials,
        log_calls=calls,
        log_stop_reasons=reasons,
        architecture=architecture,
    )


class _Reader:
    """Collects findings while a document is read."""

    def __init__(self, document: Document, findings: list[Finding]) -> None:
        self._document = document
        self._findings = findings

    def wrong(self, code: str, message: str, path: tuple[str | int, ...], *, key: bool = False, hint: str = "") -> None:
        self._findings.append(self._document.finding(code, message, path, key=key, hint=hint))

    def mapping(self, value: Any, path: tuple[str | int, ...], known: tuple[str, ...]) -> Mapping[str, Any]:
        """``value`` with its unknown keys reported; empty when it is no mapping."""
        name = ".".join(map(str, path))
        if not isinstance(value, Mapping):
            self.wrong("AG111", f"{name} must be a mapping", path)
            return {}
        for key in value:
            if key not in known:
                hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
                self.wrong("AG110", f'unknown key "{key[:60]}" in {name}', (*path, key), key=True, hint=hint)
        return value


def _budgets(reader: _Reader, value: Mapping[str, Any]) -> tuple[Budget, ...]:
    if "budgets" not in value:
        return ()
    section = value["budgets"]
    if not isinstance(section, (Mapping, list)):
        reader.wrong("AG111", "budgets must be one budget or a list of budgets", ("budgets",))
        return ()
    found = []
    for entry, path in _entries(section):
        given = reader.mapping(entry, path, _BUDGET_KEYS)
        if not given and isinstance(entry, Mapping):
            reader.wrong("AG401", "this budget limits nothing; give it at least one max_... limit", path)
        empty = [key for key, value in given.items() if value is None]
        for key in empty:  # in Python, None means no limit; in a file it is a limit that was forgotten
            reader.wrong("AG402", f"{key} has no value; write one or remove the line", (*path, key))
        if not given or empty or any(key not in _BUDGET_KEYS for key in given):
            continue
        try:
            found.append(Budget(**given))
        except ConfigurationError as error:
            message = str(error).removeprefix(f"{error.code} ")
            named = _FIRST_WORD.match(message)
            place = (*path, named[0]) if named is not None and named[0] in given else path
            reader.wrong(error.code, message, place)
    return merged(found)


def _entries(section: Any) -> list[tuple[Any, tuple[str | int, ...]]]:
    """The budgets of a section, each with its path: one budget may stand there without a list."""
    if isinstance(section, list):
        return [(entry, ("budgets", index)) for index, entry in enumerate(section)]
    return [] if section is None else [(section, ("budgets",))]


def check_tools(document: Document, registry: ToolNames) -> None:
    """Check that the tools which the budgets of a document limit are registered.

    Raises:
        PolicyError: One is not: a limit for a misspelt tool would limit nothing.
    """
    value: Any = document.value
    section = value.get("budgets")
    findings: list[Finding] = []
    reader = _Reader(document, findings)
    for entry, path in _entries(section):
        for name in entry.get("per_tool") or ():
            if name not in registry:
                hint = registry.did_you_mean(name)
                reader.wrong("AG201", f'no tool "{name}" is registered', (*path, "per_tool", name), key=True, hint=hint)
    if findings:
        raise PolicyError(findings)


def wrong_store(document: Document, error: ConfigurationError) -> PolicyError:
    """The error of a store address, with its place in the file."""
    return PolicyError([document.finding(error.code or "AG120", str(error), ("store",))])


def _loops(reader: _Reader, value: Mapping[str, Any]) -> tuple[int | None, bool]:
    if "loops" not in value:
        return None, False
    section = reader.mapping(value["loops"], ("loops",), ("max_repeats",))
    limit = section.get("max_repeats")
    if limit == "off":
        return None, True
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        reader.wrong("AG402", "max_repeats must be a whole number above 0, or off", ("loops", "max_repeats"))
        return None, True
    return limit, True


def open_sinks(settings: Settings) -> tuple[Sink, ...]:
    """Open the audit files that the settings name.

    Raises:
        PolicyError: One cannot be opened; those opened before are closed again.
    """
    opened: list[JsonlSink] = []
    for index, (path, required) in enumerate(settings.sinks):
        try:
            opened.append(JsonlSink(path, required=required))
        except SinkError as error:
            for sink in opened:
                sink.close()
            raise PolicyError([settings.document.finding("AG111", str(error), ("sinks", index, "jsonl"))]) from error
    return tuple(opened)


def _sinks(reader: _Reader, value: Mapping[str, Any], folder: Path) -> tuple[tuple[Path, bool], ...]:
    if "sinks" not in value:
        return ()
    section = value["sinks"]
    if not isinstance(section, list):
        reader.wrong("AG111", "sinks must be a list such as [{jsonl: audit.jsonl, required: true}]", ("sinks",))
        return ()
    found: list[tuple[Path, bool]] = []
    for index, entry in enumerate(section):
        path = ("sinks", index)
        settings = reader.mapping(entry, path, ("jsonl", "required"))
        target, required = settings.get("jsonl"), settings.get("required", False)
        if not isinstance(target, str) or not target:
            reader.wrong("AG111", "a sink needs a file: jsonl: audit.jsonl", path)
        elif not isinstance(required, bool):
            reader.wrong("AG111", "required must be true or false", (*path, "required"))
        else:
            found.append((folder / target, required))
    return tuple(found)


def _credentials(reader: _Reader, value: Mapping[str, Any]) -> CredentialProvider | None:
    if "credentials" not in value:
        return None
    section = reader.mapping(value["credentials"], ("credentials",), ("env",))
    prefix = section.get("env")
    if not isinstance(prefix, str) or not _VARIABLE.fullmatch(prefix):
        message = 'credentials needs env: the prefix of the environment variables, such as "AGENT_SECRET_"'
        reader.wrong("AG111", message, ("credentials", "env"))
        return None
    return EnvCredentials(prefix)


def _logging(reader: _Reader, value: Mapping[str, Any]) -> tuple[bool, bool]:
    if "logging" not in value:
        return True, True
    section = reader.mapping(value["logging"], ("logging",), ("tool_calls", "stop_reasons"))
    answers = []
    for name in ("tool_calls", "stop_reasons"):
        wanted = section.get(name, True)
        if not isinstance(wanted, bool):
            reader.wrong("AG111", f"{name} must be true or false", ("logging", name))
            wanted = True
        answers.append(wanted)
    return answers[0], answers[1]


def _architecture(reader: _Reader, value: Mapping[str, Any]) -> Mapping[str, str] | None:
    if "architecture" not in value:
        return None
    section = reader.mapping(value["architecture"], ("architecture",), tuple(_ARCHITECTURE))
    for name, words in _ARCHITECTURE.items():
        if name in section and section[name] not in words:
            hint = f"one of {', '.join(words)}"
            reader.wrong("AG115", f"{name} is not a word that is known here", ("architecture", name), hint=hint)
    return dict(section)
